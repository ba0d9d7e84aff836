"""The former name of ``speechmill.export.files``, kept for those who import it."""

from speechmill.export.files import File, Piece, Place, Unit, groups, in_threads, write_unit

__all__ = ["File", "Piece", "Place", "Unit", "groups", "in_threads", "write_unit"]
