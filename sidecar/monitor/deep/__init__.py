"""Deep drift runs: Evidently on a schedule, in a process of its own with limits.

::

    schedule.py ─ ticks ─► runs.py ─ one at a time ─► process.py ═ spawns ═► child.py
                             │  job.py: the samples as arrays      stattests.py: tests, thresholds
                             │  reports.py: JSON and pages on disk      page.py: Evidently's page

Evidently takes seconds and hundreds of megabytes to import and minutes to render: nothing of it is
ever in the monitor's process, and what the child takes goes back to the system when it ends.
"""
