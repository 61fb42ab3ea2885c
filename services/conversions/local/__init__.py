"""The model provider named `local`: pixel work with libvips and rules over supplied facts.

Pure functions on local files and plain values: no network, no database, no learned weights. The
same inputs give the same bytes. They are meant to run in a child process with limits; none needs
more than 512 MB or 20 s for a 50 MP input.
"""

MODEL_NAME = "local"
MODEL_VERSION = "1.1.0"
