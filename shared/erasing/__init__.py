"""Erases an owner in every service.

`assets` is the front: its EraseOwner notes a tombstone, and ErasureService tells the other services
of it. In each of them

    follower   (in every server) notes the tombstone, so that the schema refuses what is new of the
               owner, and reports so;
    eraser     (in the worker) empties every table with an owner, removes the objects, and reports
               what was erased and what is kept.

Decision 16 says why the services ask, and aren't told.
"""
