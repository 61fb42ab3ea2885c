"""An asset is explained, question by question, each with the step that helps."""

from collections.abc import Callable

import grpc
from atelier.assets.v1 import asset_pb2

from tests import calls
from tests.assets import flows
from tests.assets.test_references import acquire
from tests.assets.test_trash import ask, in_product
from tests.suite import Client, Suite

DATA = flows.jpeg(64, 48)


async def explain(client: Client, asset_id: str) -> tuple[str, dict[str, asset_pb2.Finding]]:
    answer = await flows.assets(client).ExplainAsset(
        asset_pb2.ExplainAssetRequest(asset_id=asset_id)
    )
    return answer.summary, {finding.question: finding for finding in answer.findings}


async def test_what_is_as_it_should_be_is_said_so(ada: Client) -> None:
    asset = await flows.upload(ada, DATA, **in_product("jacket"))
    await flows.variants_of(ada, asset.id)
    await acquire(ada, "pipeline/products/jacket", asset.id)
    summary, findings = await explain(ada, asset.id)
    assert summary == "nothing keeps it from being seen and used"
    assert all(finding.ok for finding in findings.values())
    assert "thumb: ready, 64 x 48" in findings["are its variants there?"].answer
    assert findings["does anything use it?"].answer == "yes: pipeline/products/jacket"
    assert findings["is it the primary image of product jacket?"].answer == "yes"
    assert findings["who can see it?"].answer == "only you"

    second = await flows.upload(ada, DATA, **in_product("jacket"))
    _, findings = await explain(ada, second.id)
    assert findings["is it the primary image of product jacket?"].answer == f"no, {asset.id} is"


async def test_a_pending_one_says_what_is_missing_and_until_when(suite: Suite, ada: Client) -> None:
    pending = await flows.announce(ada, DATA)
    summary, findings = await explain(ada, pending.asset.id)
    verified = findings["is it verified?"]
    assert (
        not verified.ok
        and "its URL works until 20" in verified.answer
        and summary.startswith("is it verified? no")
    )
    assert f"ConfirmUpload with upload_id {pending.upload_id}" in verified.next_step

    await suite.change(
        "UPDATE assets.uploads SET expires_at = now() - interval '1 s' WHERE id = %s",
        (pending.upload_id,),
    )
    _, findings = await explain(ada, pending.asset.id)
    assert "before its URL expired" in findings["is it verified?"].answer


async def test_one_that_comes_in_parts_says_how_long_they_are_taken_and_what_completes_it(
    suite: Suite, ada: Client
) -> None:
    started = await flows.start(ada, DATA)
    _, findings = await explain(ada, started.asset.id)
    verified = findings["is it verified?"]
    assert not verified.ok and "they are taken until 20" in verified.answer

    complete = f"CompleteResumableUpload with upload_id {started.upload_id}"
    assert "GetResumableUpload" in verified.next_step and complete in verified.next_step
    assert findings["is it in lists?"].answer == "only if the list is asked for state PENDING"

    await suite.change(
        "UPDATE assets.resumable_uploads SET expires_at = now() - interval '1 s' WHERE id = %s",
        (started.upload_id,),
    )
    _, findings = await explain(ada, started.asset.id)
    assert "before it expired" in findings["is it verified?"].answer
    assert complete in findings["is it verified?"].next_step


async def test_a_rejected_one_says_why_and_what_next(ada: Client) -> None:
    pending = await flows.announce(ada, DATA, sha256="0" * 64)
    await flows.send(pending.target, DATA)
    await calls.refused(flows.confirm(ada, pending.upload_id), grpc.StatusCode.FAILED_PRECONDITION)
    _, findings = await explain(ada, pending.asset.id)
    assert "HASH_MISMATCH" in findings["is it verified?"].answer
    assert "upload it again" in findings["is it verified?"].next_step


async def test_hidden_ones_say_how_to_bring_them_back(suite: Suite, ada: Client) -> None:
    asset = await flows.upload(ada, DATA, visibility=asset_pb2.VISIBILITY_PUBLIC)
    await flows.variants_of(ada, asset.id)  # whose files nobody moves while they are written
    await ask(ada, "Archive", asset.id)
    await ask(ada, "Delete", asset.id)
    summary, findings = await explain(ada, asset.id)
    assert summary.startswith("is it deleted? yes")
    assert "until 20" in findings["is it deleted?"].answer
    assert findings["is it deleted?"].next_step.startswith(
        "UndeleteAsset brings it back and it becomes public again"
    )
    assert "UnarchiveAsset" in findings["is it in lists?"].next_step

    await suite.change(
        "UPDATE assets.assets SET expires_at = now() - interval '1 s' WHERE id = %s", (asset.id,)
    )
    _, findings = await explain(ada, asset.id)
    assert "it may go at any time" in findings["is it deleted?"].answer


async def test_a_failed_variant_says_why_and_lost_bytes_are_told(suite: Suite, ada: Client) -> None:
    asset = await flows.upload(ada, DATA)
    await flows.variants_of(ada, asset.id)
    suite.sql(
        "UPDATE assets.variants SET state = 'failed', error_class = 'CORRUPT', error_message = 'cut"
        " off' WHERE asset_id = %s AND preset = 'avif'",
        (asset.id,),
    )
    await suite.change("UPDATE assets.assets SET bytes_gone_at = now() WHERE id = %s", (asset.id,))

    _, findings = await explain(ada, asset.id)
    assert "avif: failed (CORRUPT): cut off" in findings["are its variants there?"].answer
    assert findings["are its variants there?"].next_step == "RegenerateVariants tries again"
    assert not findings["are its bytes there?"].ok


async def test_of_anothers_public_asset_only_what_concerns_the_caller_is_told(
    ada: Client, caller: Callable[..., Client]
) -> None:
    owner = caller()
    asset = await flows.upload(
        owner, DATA, visibility=asset_pb2.VISIBILITY_PUBLIC, **in_product("secret-product")
    )
    await acquire(owner, "secret-holder", asset.id)
    summary, findings = await explain(ada, asset.id)
    text = summary + "".join(str(finding) for finding in findings.values())
    assert (
        "and public; you can read and use it" in text
        and "secret" not in text
        and owner.subject not in text
    )

    private = await flows.upload(owner, DATA)
    await calls.refused(explain(ada, private.id), grpc.StatusCode.NOT_FOUND)
