"""Exact top-k and sparse optimizer updates on index lists, as compiled kernels with PyTorch references beside them."""

from selective_kernels.dispatch import explain
from selective_kernels.fetched import Fetched
from selective_kernels.gaps import decode_gaps, encode_gaps
from selective_kernels.index import SparseIndex
from selective_kernels.indexing import gather, gather_bits, gather_grads, merge_, scatter_, swap_
from selective_kernels.optim import AdamGroup, Ages, SgdGroup, Update, adam_, sgd_, square_sum
from selective_kernels.score import Score
from selective_kernels.table import Table
from selective_kernels.topk import Scan, scan, topk, topk_ref

__version__ = "0.1.0"
__all__ = [
    "AdamGroup",
    "Ages",
    "Fetched",
    "Scan",
    "Score",
    "SgdGroup",
    "SparseIndex",
    "Table",
    "Update",
    "adam_",
    "decode_gaps",
    "encode_gaps",
    "explain",
    "gather",
    "gather_bits",
    "gather_grads",
    "merge_",
    "scan",
    "scatter_",
    "sgd_",
    "square_sum",
    "swap_",
    "topk",
    "topk_ref",
]
