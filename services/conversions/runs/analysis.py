"""Runs an analysis."""

from services.conversions import merging
from services.conversions.analysis_rows import Analysis
from services.conversions.providers.contract import AnalysisRequest
from services.conversions.runs.run import Concluded, Run
from shared.background import attempts


async def run_analysis(run: Run[Analysis]) -> attempts.Outcome[Analysis]:
    row = run.row
    await run.fetch_inputs()
    pictures = run.pictures()
    measured = await run.local.measured(row.task, pictures, row.facts)
    request = AnalysisRequest(row.model_task, pictures, row.facts, run.directory)
    found = await run.find(request)
    evidence = merging.evidence(row.task, measured, found)
    confidence = merging.confidence(evidence)
    concluded = Concluded(
        found.model,
        {"task": row.task, **found.parameters},
        merging.result(row.task, measured, found),
        merging.findings(row.task, measured, found),
        confidence,
        evidence,
    )
    return run.conclude(concluded)
