"""No answer without pages is larger than a client accepts: the limits of the contract ensure that.

The largest size of a message is the sum over its fields: MOST says how often a field repeats, TEXTS
how long a text is, LARGEST how large a message is as a whole. A new rpc with a repeated field fails
here until somebody has decided how often it repeats. tests/test_pages.py tests answers with pages.
"""

from collections import defaultdict
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from tests.test_pages import PAGED
from tests.test_tenancy import METHODS

CLIENTS_TAKE = 4 * 1024 * 1024
TEXT = 2_000 * 4  # bytes: characters of four bytes, for every text that TEXTS doesn't name
LABEL = 130 * 4
URL = 10_000

# Limited as a whole, in bytes.
LARGEST = {
    "google.protobuf.Struct": (
        65_000
    ),  # 16 KiB as JSON may be numbers, which take 11 bytes instead of 3
    "atelier.common.v1.Facts": 1_000_000,  # FACTS_BYTES
    "atelier.pipeline.v1.PhaseValue": (
        1_000_000
    ),  # VALUE_BYTES of the model, and as much from a reviewer
    "atelier.assets.v1.DocumentContent": 300_000 * 4 + 2_000_000,  # MOST_TEXT, and the rest
    "atelier.assets.v1.StyleImage": 3_000,  # public pictures: their URLs are short
    "atelier.assets.v1.PartTarget": 3_000,
    "atelier.assets.v1.UploadTarget": 20_000,
    "atelier.conversions.v1.WorkPicture": 3_000,
    "atelier.assets.v1.OwnedRow": 3_200_000,  # a row of documents
    "Analysis.result": 1_000_000,  # the limit of facts
    "PhaseResult.findings": 500_000,  # FINDINGS_BYTES of all, some of them numbers
    "Review.findings": 500_000,
    "atelier.techfiles.v1.TechFile": 1_100_000,  # ANALYSIS_BYTES of numbers, and a prompt
    "atelier.techfiles.v1.HistoryFinding": 40_000,  # 100 values of a repair
    "TechPackRun.files": 32_000,  # without both
    "TechPackRun.pdf": 220_000,  # 10 warnings
    "TechPackRun.zip": 220_000,
    "ApproveReleaseResponse.documents": 220_000,
    "CreateReleaseResponse.documents": 220_000,
    "MakeReleaseDocumentsResponse.documents": 220_000,
    "GetReleaseResponse.documents": 220_000,
}
# How often a field repeats. For a message type: in all fields of that type.
MOST = {
    "AddAlbumAssetsResponse.results": 500,
    "ExplainReviewResponse.findings": 7,
    "ExplainReleaseResponse.findings": 5,
    "documents": 3,
    "GetReviewReportResponse.by_provider": 50,
    "ReviewFigures.thresholds": 10,
    "RemoveAlbumAssetsResponse.results": 500,
    "Asset.album_ids": 10_000,
    "Asset.tags": 50,
    "Backfill.kinds": 16,
    "Backfill.presets": 20,
    "Batch.errors": 10,
    "BatchUpdatePhasesResponse.results": 500,
    "ListPhasePausesResponse.pauses": 4,
    "RerunPhaseResponse.phases": 4,
    "ExplainPhaseResponse.answers": 12,
    "LegacyBackfill.failures": 100,
    "RepairHistoryResponse.findings": 50,
    "GetLegacyTableResponse.columns": 10,
    "GetLegacyTableResponse.problems": 11,
    "GetLegacyTableResponse.write_problems": 100,
    "BatchConversions.cloth_asset_ids": 200,
    "BatchConversions.style_names": 20,
    "BatchConversions.user_asset_ids": 200,
    "BatchDeleteAssetsResponse.results": 1000,
    "BatchGenerations.prompts": 100,
    "BatchGenerations.reference_asset_ids": 16,
    "BatchGenerations.seeds": 100,
    "BatchUndeleteAssetsResponse.results": 1000,
    "Dataset.images": 100,
    "duplicates": 20,
    "ContentCredentials.problems": 20,
    "CostPoint.costs": 20,
    "Document.warnings": 100,
    "DuplicateGroup.assets": 20,
    "ExplainAssetResponse.findings": 50,
    "ExplainJobResponse.answers": 10,
    "ExplainProductResponse.answers": 10,
    "ExplainTechFileResponse.findings": 6,
    "ExportOwnerResponse.urls": 1,
    "FindDuplicatesResponse.groups": 100,
    "FindStylePicturesResponse.pictures": 500,
    "GetAssetStatsResponse.sums": 200,
    "GetQuotaResponse.uses": 10,
    "GetResumableUploadResponse.missing_part_numbers": 1000,
    "GetResumableUploadResponse.parts": 1000,
    "GetGenerationStatisticsResponse.datasets": 100,
    "GetRetentionResponse.rules": 7,
    "ListRetentionCountsResponse.counts": 366 * 7,
    "GetGenerationStatisticsResponse.patterns": 8 * 20,
    "GetGenerationStatisticsResponse.prompts": 100,
    "GetGenerationStatisticsResponse.volume": 524,
    "GetJobStatisticsResponse.by_type": 11,
    "GetJobStatisticsResponse.costs": 100,
    "GetJobStatisticsResponse.features": 11,
    "GetUsageStatsResponse.days": 367 * 8,
    "ImageFacts.dominant_colours": 10,
    "ListAlertsResponse.alerts": 20,
    "ListVariantsResponse.variants": 20,
    "QuoteJobResponse.lines": 20,
    "RequeueJobsResponse.results": 100,
    "GetWorkResponse.pictures": 20,
    "RegenerateVariantsResponse.variants": 20,
    "ProjectCostsResponse.points": 121,
    "ProjectCostsResponse.thresholds": 20,
    "Provenance.source_asset_ids": 100,
    "Run.counts": 20,
    "Run.failures": 100,
    "Run.services": 3,
    "RunCount.sample": 10,
    "SignPartsResponse.targets": 100,
    "StartResumableUploadResponse.targets": 100,
    "ServiceErasure.counts": 60,
    "StorageReport.asset_counts": 500,
    "StorageReport.average_sizes": 500,
    "StorageReport.quotas": 10,
    "StorageReport.variant_counts": 100,
    "Style.images": 500,
    "Style.palette": 50,
    "Style.room_types": 50,
    "evidence": 100,
    "outdated_phases": 4,
    "Analysis.findings": 40,
    "Analysis.consent_ids": 16,
    "Analysis.images": 16,
    "ConsentErasure.held": 100,
    "HeldPicture.holders": 20,
    "Generation.consent_ids": 20,
    "Generation.reference_asset_ids": 16,
    "Generation.unique_visual_elements": 50,
    "Recipe.inputs": 20,
    "ImportPriceBookResponse.errors": 100,
    "GetDisclosureResponse.reasons": 100,
    "MarkManifest.problems": 20,
    "VerifyMarkResponse.rests_on": 5,
    "GetLineageResponse.edges": 200 * 18,
    "GetLineageResponse.jobs": 200,
    "GetLineageResponse.pictures": 1000,
    "LineageJob.attempts": 5,
    "LineageJob.consent_ids": 20,
    "ListProvidersResponse.providers": 10,
    "Provider.tasks": 12,
    "ListProviderRoutesResponse.routes": 14,
    "ProviderRoute.providers": 8,
    "Product.external_phases": 4,
    "PhaseResult.findings": 1,  # LARGEST says how large all are
    "Product.images": 16,
    "Product.phases": 4,
    "Review.findings": 1,
    "AddFilesResponse.results": 1000,
    "Export.warnings": 100,
    "GetProductStatisticsResponse.files_by_state": 10,
    "GetProductStatisticsResponse.files_by_type": 10,
    "RemoveFilesResponse.removed_tech_file_ids": 1000,
    "ExplainTechPackRunResponse.findings": 72,  # a run has at most 68 steps
    "TechPackRun.files": 68,
    "TechPackRun.steps": 68,
    "ExplainCollectionResponse.files": 8,
    "ExplainCollectionResponse.findings": 10,
    "ExplainCollectionResponse.left_out": 50,
    "GetStorageReportResponse.exports": 16,
    "GetStorageReportResponse.owners": 100,
    "ReconcileExportsResponse.lost_export_ids": 100,
    "Endpoint.event_types": 100,
    "ListEventTypesResponse.event_types": 100,
}
# Bytes of texts whose limit isn't 2,000 characters.
TEXTS = {
    "PhaseUpdateResult.error_message": 500 * 4,
    "PhaseUpdateResult.error_reason": 60,
    "PhaseUpdateResult.product_id": 36,
    "Provenance.prompt": 32_000,
    "BatchGenerations.prompts": 4_000 * 4,
    "Asset.tags": 64 * 4,
    "Asset.album_ids": 36,
    "Provenance.source_asset_ids": 36,
    "PopularPrompt.prompt": 800,
    "UsagePattern.value": 800,
    "prompt": 40_000,
    "Generation.full_prompt": 60_000,
    "Generation.prompt_used": 60_000,
    "Generation.caption": 40_000,
    "AssetResult.message": 500,
    "ContentCredentials.problems": 255 * 4,
    "manifest_store": 65_536,
    "Style.description": 16_000,
    "name": 300 * 4,
    "Consent.wording": 40_000,
    "HeldPicture.asset_id": 36,
    "HeldPicture.holders": 800,
    "consent_ids": 36,
    "Document.warnings": 4_000,
    "Export.warnings": 20_000,
    "mime_type": 100,
    "sha256": 64,
    "day": 10,
    "Duplicate.file_name": 255 * 4,
    "LineageAttempt.error_class": 60,
    "LineageAttempt.model": 201 * 4,
    "LineageEdge.from_id": 36,
    "LineageEdge.role": 40,
    "LineageEdge.to_id": 36,
    "LineagePicture.asset_id": 36,
    "LineageJob.model": 100 * 4,
    "LineageJob.model_version": 100 * 4,
    "LineageJob.provider": 40,
    "LineageJob.task": 40,
    "LineagePicture.digital_source_type": 60,
    "LineagePicture.file_name": 255 * 4,
    "LineagePicture.kind": 40,
    "Reference.holder": 800,
    "id": 36,
    "RunCount.sample": 1100,
    "ErasureCount.what": 100,
    "ExportOwnerResponse.row_json": 3_500_000,  # an analysis with facts and findings
    "ExportOwnerResponse.urls": 2000,
    "ErasureCount.why_kept": 2000,
    "EventType.name": 100,
    "EventType.data_message": 200,
    "RemoveFilesResponse.removed_tech_file_ids": 36,
    "GetDeliveryResponse.body": 3_800_000,
    "MonthlyCost.backend": 100,
    "preset": 40,
    "kinds": 20,
    "presets": 40,
    "Evidence.note": 4_000,
    "ReviewFigures.provider": 400,
    "ThresholdFigures.caution": 200,
    "TechFileFinding.answer": 20_000,
    "section": 40,
    "asset_id": 36,
    "reason": 4_000,
    "AssetResult.reason": 60,
    "Endpoint.event_types": 400,
}
# Their handlers measure their answers. The test of each is named.
MEASURED = {
    "atelier.assets.v1.AssetService.BatchGetAssets": "test_what_is_left_of_a_batch_is_named",
    "atelier.assets.v1.AssetService.AcquireReferences": (
        "test_a_hundred_large_assets_are_held_in_one_answer"
    ),
    "atelier.pipeline.v1.LogService.ExportLogs": (
        "test_an_export_has_every_line_once_in_answers_that_clients_take"
    ),
    "atelier.pipeline.v1.ReviewDeskService.NextReview": (  # an open review has one value of three
        "test_the_largest_review_comes_with_its_product"
    ),
    "atelier.techfiles.v1.HistoryService.CompareTechFiles": (
        "test_a_comparison_that_is_too_large_counts_what_it_leaves_out"
    ),
    "atelier.techfiles.v1.HistoryService.CompareCollections": (
        "test_collections_that_differ_in_large_facts_are_compared_in_one_answer"
    ),
    "atelier.techfiles.v1.ReleaseService.CompareReleases": (
        "test_releases_that_differ_in_large_facts_are_compared_in_one_answer"
    ),
    "atelier.pipeline.v1.PhaseService.ClaimNextPhase": (
        "test_a_claimed_phase_with_large_results_before_it_fits"
    ),
    "atelier.pipeline.v1.ProductService.GetProduct": "test_a_product_with_large_results_is_read",
}


def named(table: dict[str, int], field: Any) -> int | None:
    """Returns the table's value for this field of its message, else for fields of this name."""
    return table.get(f"{field.containing_type.name}.{field.name}", table.get(field.name))


def largest(message: Descriptor) -> int:
    if message.full_name in LARGEST:
        return LARGEST[message.full_name]
    if message.full_name.startswith("google.protobuf."):
        return 20
    of_oneofs: dict[str, int] = defaultdict(int)
    for field in message.fields:
        place = field.containing_oneof.name if field.containing_oneof else field.name
        of_oneofs[place] = max(of_oneofs[place], largest_of(field))
    return sum(of_oneofs.values())


def largest_of(field: Any) -> int:
    if field.message_type:
        one = named(LARGEST, field) or largest(field.message_type)
    elif field.type == FieldDescriptor.TYPE_BYTES:
        one = 256 * 1024  # a piece of a stream
    elif field.type != FieldDescriptor.TYPE_STRING:
        one = 10
    elif field.name.endswith("url"):
        one = URL
    else:
        one = named(TEXTS, field) or (LABEL if field.name.endswith("_id") else TEXT)
    if not field.is_repeated:
        return one + 5
    most = named(MOST, field)
    assert most, (
        f"{field.full_name} repeats: say in MOST how often, see that the service keeps to it, or"
        " give it pages"
    )
    return most * (one + 5)


@pytest.mark.parametrize("name", sorted(METHODS.keys() - PAGED - MEASURED.keys()))
def test_the_largest_answer_is_one_that_clients_take(name: str) -> None:
    assert largest(METHODS[name].output_type) < CLIENTS_TAKE
