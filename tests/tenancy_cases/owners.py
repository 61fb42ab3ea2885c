"""Cases for the exports that every service serves for itself."""

from atelier.owners.v1 import owner_pb2 as pb

from tests.tenancy_cases import NOT_FOUND, Case

CASES = {
    "atelier.owners.v1.OwnerService.ExportOwner": Case(
        lambda o: pb.ExportOwnerRequest(owner="user:ada"), NOT_FOUND
    )
}
