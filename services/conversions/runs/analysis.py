"""Runs an analysis."""

from services.conversions import rules
from services.conversions.analysis_rows import Analysis
from services.conversions.providers.contract import AnalysisProvider
from services.conversions.runs.run import Run
from shared.background import attempts


async def run_analysis(run: Run[Analysis, AnalysisProvider]) -> attempts.Outcome[Analysis]:
    row = run.row
    images = [(item.role, item.path) for item in await run.fetch_inputs()]
    found = await run.provider.analyse(row.task, images, row.facts)
    return run.conclude(found, parameters={"task": row.task}, price=rules.ANALYSIS_CREDITS)
