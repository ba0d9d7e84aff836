"""The former name of ``speechmill.export.repartition``, kept for those who import it."""

from speechmill.export.repartition import Observer, RepartitionReport, RunUnits, repartition

__all__ = ["Observer", "RepartitionReport", "RunUnits", "repartition"]
