"""What the monitor and the child of a deep run say to each other, in frames (``frames.py``).

::

    child → monitor   READY {memory_bytes}     Evidently is imported
    monitor → child   RUN   a job (``job.py``)
    child → monitor   RESULT, one part: JSON   then, where a page is wanted,
                      PAGE,   one part: HTML   or PAGE {error}
                      FAILED {text}            instead of any of them, and the last
"""

from __future__ import annotations

READY, RUN, RESULT, PAGE, FAILED = range(1, 6)
#: Of the monitor's making: both samples, their labels.
JOB_BYTES_MAX = 2**30
#: Of the child's: a page of 200 columns has about 20 MB.
ANSWER_BYTES_MAX = 128 * 2**20
#: Parts over this go as a memfd, so that a child that does not read yet holds up nobody.
MEMFD_OVER = 16 * 1024
