"""PyTorch datasets of a sink's rows: tensors of tokens, in batches, shared out among workers.

::

    from torch.utils.data import DataLoader
    from speechmill.torch import SpeechStream, collate

    stream = SpeechStream("s3://voices/out", profile="r2", columns=("transcription", "token"))
    for batch in DataLoader(stream, batch_size=16, num_workers=2, collate_fn=collate):
        batch["token"], batch["token_mask"], batch["transcription"]

Needs the extra ``torch``.
"""

from speechmill.errors import MissingExtraError

try:
    import torch  # noqa: F401 to say what is missing before anything else does
except ImportError as error:  # pragma: no cover
    raise MissingExtraError("speechmill.torch", "torch") from error

from speechmill.torch.collating import collate
from speechmill.torch.data import SpeechDataset, SpeechStream
from speechmill.torch.sampling import BucketBatchSampler

__all__ = ["BucketBatchSampler", "SpeechDataset", "SpeechStream", "collate"]
