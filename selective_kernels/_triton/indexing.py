from selective_kernels.indexing import gather_grads_ref as gather_grads

__all__ = ["gather_grads"]
