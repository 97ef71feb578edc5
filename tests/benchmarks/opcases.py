"""The point that tests of the operations' benchmarks start from, and who is measured beside ours."""

from benchmarks import op_indexing, op_merging, op_topk, op_update
from benchmarks.op_problem import Point

BASE = Point("base", "64k", "float32", 0.003, 1e-3, 1, "", "cpu")
RIVALS = {
    "scan+topk": [op_topk.TOPK, op_topk.BY_TENSOR, op_topk.PIECES, op_topk.SORT],
    "update": [op_update.LISTED, op_update.FUSED, op_update.FOREACH, op_update.MASKED],
    "merge": [op_merging.SORT, op_merging.SEARCH],
    "gather": [op_indexing.SELECT, op_indexing.INDEX, op_indexing.FLAT],
    "scatter": [op_indexing.COPY, op_indexing.SET, op_indexing.FLAT_COPY],
    "swap": [op_indexing.COPY, op_indexing.SET, op_indexing.FLAT_COPY],
}
