"""What a run found, for people and for CI: one page, one document, one JUnit file.

::

    write_report(result, Path("report"), cases={case.id: case, …})
    # report/report.html   one self-contained file: no scripts, nothing loaded from elsewhere
    # report/report.json   ``RunResult.to_plain()``
    # report/report.xml    JUnit: a test case for each variant, input set and output
"""

from exporters.reports.report import CaseArrays, ReportError, write_report

__all__ = ["CaseArrays", "ReportError", "write_report"]
