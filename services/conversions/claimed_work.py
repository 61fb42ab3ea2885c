"""WorkService: gives an outside worker what it needs of a job that it claimed."""

from uuid import UUID, uuid5

from atelier.assets.v1 import asset_pb2, upload_pb2
from atelier.conversions.v1 import work_pb2 as pb
from atelier.conversions.v1 import work_pb2_grpc

from services.conversions import assets, outside
from services.conversions.consenting import Consents
from services.conversions.job_rows import PictureJob
from services.conversions.outside import JobLocks, LockedJob
from shared.background.jobs import JobQueue
from shared.database.db import Database
from shared.rpc import auth, errors
from shared.rpc.calls import Peers
from shared.rpc.server import Context


class WorkService(work_pb2_grpc.WorkServiceServicer):
    def __init__(self, db: Database, queue: JobQueue, peers: Peers) -> None:
        self._db = db
        self._peers = peers
        self._outside = JobLocks(queue)
        self._consents = Consents(db)

    async def GetWork(self, request: pb.GetWorkRequest, context: Context) -> pb.GetWorkResponse:
        job = await self._claimed(request)
        wanted = job.row.inputs()
        found = await self._peers.assets((str(each.asset_id) for each in wanted), urls=True)
        pictures = []
        for role, asset_id in wanted:
            asset = found.get(str(asset_id))
            if asset is None or not assets.is_there(asset):
                text = f"its picture {role} ({asset_id}) is gone: fail the job"
                raise errors.precondition(text, subject=f"jobs/{job.row.id}")
            pictures.append(_picture(role, asset))
        await self._consents.check(job.row.model_task, list(found.values()))
        message = job.kind.to_proto(job.row)
        return pb.GetWorkResponse(**{job.kind.name: message}, pictures=pictures)

    async def RequestResultUpload(
        self, request: pb.RequestResultUploadRequest, context: Context
    ) -> pb.RequestResultUploadResponse:
        job = await self._claimed(request)
        if not isinstance(job.row, PictureJob):
            raise errors.invalid("job_id", "is an analysis; complete it with its findings")
        declaration = upload_pb2.UploadDeclaration(
            kind=asset_pb2.ASSET_KIND_REFERENCE,
            file_name=f"{job.kind.name}-{job.row.id}",
            mime_type=request.mime_type,
            size_bytes=request.size_bytes,
            sha256=request.sha256,
        )
        # The owner's other requests have names of their own, which this one must not meet.
        named = request.request_id and str(uuid5(UUID(request.attempt_token), request.request_id))
        uploaded = await assets.request_upload(self._peers, declaration, named)
        return pb.RequestResultUploadResponse(
            asset_id=uploaded.asset.id, upload_id=uploaded.upload_id, target=uploaded.target
        )

    async def _claimed(
        self, request: pb.GetWorkRequest | pb.RequestResultUploadRequest
    ) -> LockedJob:
        """Returns the row, which belonged to the attempt a moment ago. The current identity acts
        for its owner from here on."""
        await outside.act_for_claimed(self._db, request.job_id, request.attempt_token)
        identity = auth.current()
        async with self._db.transaction(identity.owner, identity.actor) as m:
            return await self._outside.lock_claimed(m, request.job_id, request.attempt_token)


def _picture(role: str, asset: asset_pb2.Asset) -> pb.WorkPicture:
    return pb.WorkPicture(
        role=role,
        asset_id=asset.id,
        url=asset.original_url,
        mime_type=asset.mime_type,
        size_bytes=asset.size_bytes,
        sha256=asset.sha256,
    )
