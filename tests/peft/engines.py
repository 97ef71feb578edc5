"""A receiver of weight patches: the weights of a running engine, by the names that a checkpoint has."""

import torch
from selective_peft.naming import named_params

from selective_kernels.testing import assert_bitwise_equal


class Engine:
    """Begins with a copy of a model's weights, takes patches, and refuses what vLLM's loader refuses.

    As in `load_checkpoint_weight_patches` of vLLM (#50723) sparse patches are laid out as a tensor of the checkpoint's
    shape that holds NaN where nothing changes, and sparse and dense ones come in calls of their own.
    """

    def __init__(self, model):
        self.weights = {name: param.detach().clone() for name, param in named_params(model).items()}

    def receive(self, patches):
        """Takes all patches of a step; returns how many values came."""
        patches = list(patches)
        for chosen in ([p for p in patches if p.indices is not None], [p for p in patches if p.indices is None]):
            assert len({p.name for p in chosen}) == len(chosen)
            for patch in chosen:
                self._load(*patch)
        return sum(patch.values.numel() for patch in patches)

    def _load(self, name, shape, dtype, values, indices):
        weight = self.weights[name]
        assert (shape, dtype) == (tuple(weight.shape), weight.dtype)
        assert type(shape) is tuple
        assert (values.dtype, values.dim(), values.is_contiguous()) == (dtype, 1, True)
        assert not values.requires_grad
        if indices is None:
            assert values.numel() == weight.numel()
            weight.copy_(values.view(shape))
            return
        assert (indices.dtype, indices.shape, indices.is_contiguous()) == (torch.int32, values.shape, True)
        assert indices.numel()
        assert 0 <= int(indices[0]) <= int(indices[-1]) < weight.numel()
        assert bool((indices.diff() > 0).all())
        staged = torch.full((weight.numel(),), float("nan"), dtype=dtype).index_copy_(0, indices.long(), values)
        staged = staged.view(shape)
        torch.where(staged.isnan(), weight, staged, out=weight)

    def assert_is(self, model):
        """Every weight has the model's bits."""
        for name, param in named_params(model).items():
            assert_bitwise_equal(self.weights[name], param.detach(), name)
