"""Linear layer and cross entropy over a vocabulary that tensor parallelism splits,
without the logits.

Tokens pass in chunks: each chunk's logits are formed, reduced to its losses, turned
into the gradients of hidden states and weight on the spot, and dropped, so the peak is
one chunk of fp32 logits however long the row: 1 GiB for 1,024 tokens and a vocabulary
of 256,000, where a row of 163,840 tokens would take 156 GiB. The forward thus does the backward's
two matrix products too; the backward only scales.

Shapes: T tokens of this context-parallel rank, c tokens of a chunk, H hidden size, v
entries of the vocabulary in this tensor-parallel rank's shard.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from alia_ctx.data.packing import IGNORE
from alia_ctx.errors import DataError, LayoutError
from alia_ctx.spec.execution import loss_chunk_tokens


@dataclass(frozen=True)
class TokenLosses:
    """What a loss is made of, detached, token by token: `values` fp32 [T] (fp64 for fp64
    inputs) and `hits` bool [T].

    A hit: greedy decoding would give the target, that is, torch.argmax over the logits
    of the whole vocabulary (of equal logits the lowest index). Where nothing is
    predicted the value is 0 and no hit.
    """

    values: Tensor
    hits: Tensor


def vocab_parallel_loss(
    hidden: Tensor,
    weight_vH: Tensor,
    targets_T: Tensor,
    *,
    tp_group: dist.ProcessGroup | None,
    vocab_size: int,
    sequence_parallel: bool,
    chunk_tokens: int | None = None,
    weights_T: Tensor | None = None,
) -> tuple[Tensor, TokenLosses]:
    """Sum of the cross entropies of the predicted tokens (fp32 scalar, differentiable),
    and what each of them is. In the sum each counts `weights_T` (fp32 [T], on every TP
    rank; None: 1).

    `hidden` is [T, H] or Megatron's [T, 1, H]; under sequence parallelism it holds this
    TP rank's T/tp tokens. `weight_vH` is this TP rank's shard of the head, padded to
    equal shards: rows at or beyond `vocab_size` take no part and get no gradient.
    `targets_T` (int64) are all T targets on every TP rank, -100 (IGNORE) where nothing
    is
    predicted: such tokens have loss 0 and gradient 0, even where all of a rank's tokens are such.

    Logits, their softmax, and the sums over chunks and TP ranks are fp32 (fp64 for fp64
    inputs); gradients are rounded once, at the end. (On a GPU with bf16 weights the
    logits' gradients enter the matrix products in bf16.)
    All TP ranks return the same values. The gradient of `hidden` is that of the whole
    vocabulary: already summed over TP. Raises LayoutError if the shapes do not fit,
    DataError for a target outside the vocabulary (on CPU, where looking costs no
    synchronisation).
    """
    tokens_H = hidden.reshape(-1, hidden.shape[-1])
    chunk = loss_chunk_tokens(chunk_tokens, hidden.device.type)
    head = _Head(tp_group, vocab_size, sequence_parallel, chunk)
    _check(tokens_H, weight_vH, targets_T, head)
    differentiate = torch.is_grad_enabled() and (
        hidden.requires_grad or weight_vH.requires_grad
    )
    total, values_T, hits_T = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        tokens_H, weight_vH, targets_T, weights_T, head, differentiate
    )
    return total, TokenLosses(values_T, hits_T)


def _check(tokens_H: Tensor, weight_vH: Tensor, targets_T: Tensor, head: _Head) -> None:
    expected = tokens_H.shape[0] * (head.tp if head.sequence_parallel else 1)
    if targets_T.ndim != 1 or targets_T.shape[0] != expected:
        raise LayoutError(
            f"{expected} hidden states over tp={head.tp} but targets of shape "
            f"{tuple(targets_T.shape)}"
        )
    if weight_vH.shape[0] * head.tp < head.vocab_size:
        raise LayoutError(
            f"{head.tp} shards of {weight_vH.shape[0]} rows cannot hold "
            f"vocab_size={head.vocab_size}; pad the head"
        )
    if targets_T.device.type == "cpu":
        broken = (targets_T != IGNORE) & (
            (targets_T < 0) | (targets_T >= head.vocab_size)
        )
        if broken.any():
            at = int(broken.nonzero()[0])
            raise DataError(
                f"target {int(targets_T[at])} at token {at} is outside the vocabulary "
                f"of {head.vocab_size}; "
                "tokenise with the tokenizer of this model"
            )


class _Head:
    """How tokens and vocabulary are spread over the TP group, and the three collectives that
    this needs.
    """

    def __init__(
        self,
        tp_group: dist.ProcessGroup | None,
        vocab_size: int,
        sequence_parallel: bool,
        chunk_tokens: int,
    ) -> None:
        self.group, self.tp = tp_group, tp_group.size() if tp_group is not None else 1
        self.rank = tp_group.rank() if tp_group is not None else 0
        self.vocab_size, self.chunk_tokens = vocab_size, chunk_tokens
        self.sequence_parallel = sequence_parallel and self.tp > 1

    def vocab_local(self, shard: int) -> int:
        """Real entries of the vocabulary in this rank's shard of `shard` rows."""
        return min(max(self.vocab_size - self.rank * shard, 0), shard)

    def chunks(self, own_tokens: int) -> Iterator[slice]:
        """Slices of the own hidden states whose chunk over all TP ranks has at most
        `chunk_tokens` tokens.
        """
        size = max(1, self.chunk_tokens // (self.tp if self.sequence_parallel else 1))
        for start in range(0, own_tokens, size):
            yield slice(start, min(start + size, own_tokens))

    def targets(self, targets_T: Tensor) -> Tensor:
        """[parts, tokens]: with sequence parallelism part i is what TP rank i holds;

        else there is one part.
        """
        return targets_T.view(self.tp if self.sequence_parallel else 1, -1)

    def gather_hidden(self, own_cH: Tensor) -> Tensor:
        if not self.sequence_parallel:
            return own_cH
        out = own_cH.new_empty((self.tp * own_cH.shape[0], own_cH.shape[1]))
        dist.all_gather_into_tensor(out, own_cH.contiguous(), group=self.group)
        return out

    def reduce_hidden(self, grad_cH: Tensor) -> Tensor:
        """Sum over the vocabulary's shards, of this rank's part of the chunk under
        sequence parallelism.
        """
        if self.sequence_parallel:
            out = grad_cH.new_empty((grad_cH.shape[0] // self.tp, grad_cH.shape[1]))
            dist.reduce_scatter_tensor(out, grad_cH, group=self.group)
            return out
        if self.tp > 1:
            dist.all_reduce(grad_cH, group=self.group)
        return grad_cH

    def gather_statistics(self, own: Tensor) -> Tensor:
        """[n, c] of each TP rank -> [tp, n, c]."""
        if self.tp == 1:
            return own[None]
        out = own.new_empty((self.tp * own.shape[0], own.shape[1]))
        dist.all_gather_into_tensor(out, own.contiguous(), group=self.group)
        return out.view(self.tp, *own.shape)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        own_TH: Tensor,
        weight_vH: Tensor,
        targets_T: Tensor,
        weights_T: Tensor | None,
        head: _Head,
        differentiate: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        compute = torch.promote_types(weight_vH.dtype, torch.float32)
        weight = _operand(weight_vH[: head.vocab_local(weight_vH.shape[0])])
        targets = head.targets(targets_T)
        counts = None if weights_T is None else head.targets(weights_T)
        losses = torch.zeros(targets.shape, dtype=compute, device=own_TH.device)
        hits = torch.zeros(targets.shape, dtype=torch.bool, device=own_TH.device)
        if differentiate:
            grad_hidden = torch.empty_like(own_TH)
            grad_weight = torch.zeros_like(weight_vH, dtype=compute)
        for chunk in head.chunks(own_TH.shape[0]):
            hidden_cH, targets_c = (
                _operand(head.gather_hidden(own_TH[chunk])),
                targets[:, chunk].reshape(-1),
            )
            local_c = targets_c - head.rank * weight_vH.shape[0]
            losses_c, hits_c, scores_cv = _cross_entropy(
                hidden_cH, weight, local_c, targets_c != IGNORE, head, differentiate
            )
            losses[:, chunk] = losses_c.view(targets.shape[0], -1)
            hits[:, chunk] = hits_c.view(targets.shape[0], -1)
            if differentiate:
                if counts is not None:
                    scores_cv.mul_(counts[:, chunk].reshape(-1, 1))
                scores_cv = scores_cv.to(weight.dtype)
                grad_hidden[chunk] = head.reduce_hidden(_product(scores_cv, weight))
                _add_product(grad_weight[: weight.shape[0]], scores_cv.T, hidden_cH)
            del scores_cv  # or the next chunk's logits would stand beside it
        if differentiate:
            ctx.save_for_backward(grad_hidden, grad_weight.to(weight_vH.dtype))
        losses_T, hits_T = losses.view(-1), hits.view(-1)
        total = (losses_T if weights_T is None else losses_T * weights_T).sum()
        ctx.mark_non_differentiable(losses_T, hits_T)
        return total, losses_T, hits_T

    @staticmethod
    def backward(
        ctx: Any, grad_total: Tensor, *detached: Tensor
    ) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        # In place: a second weight gradient would be the largest thing here. Autograd
        # refuses a second backward.
        return (
            grad_hidden.mul_(grad_total),
            grad_weight.mul_(grad_total),
            None,
            None,
            None,
            None,
        )


def _cross_entropy(
    hidden_cH: Tensor,
    weight_vH: Tensor,
    local_c: Tensor,
    counted_c: Tensor,
    head: _Head,
    differentiate: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses [c], hits [c], and the gradient of the shard's logits [c, v] (or the scratch
    that it would be made of).
    """
    scores = _product(hidden_cH, weight_vH.T)
    vocab_local = scores.shape[1]
    is_local_c = (local_c >= 0) & (local_c < vocab_local) & counted_c
    index_c1 = local_c.clamp(0, max(vocab_local - 1, 0))[:, None]
    if vocab_local:
        best_c1 = scores.argmax(1, keepdim=True)
        peak_c = scores.gather(1, best_c1)[:, 0]
        target_c = scores.gather(1, index_c1)[:, 0].where(is_local_c, 0)
        is_best_c = is_local_c & (best_c1 == index_c1)[:, 0]
    else:  # a shard that is padding alone
        peak_c = scores.new_full((scores.shape[0],), -torch.inf)
        target_c, is_best_c = torch.zeros_like(peak_c), is_local_c
    scores.sub_(peak_c[:, None]).exp_()
    peaks, sums, chosen, best = head.gather_statistics(
        torch.stack((peak_c, scores.sum(1), target_c, is_best_c.to(scores.dtype)))
    ).unbind(1)
    lse_c = peaks.amax(0)
    lse_c = lse_c + (sums * (peaks - lse_c).exp()).sum(0).log()
    losses_c = (lse_c - chosen.sum(0)).where(counted_c, 0)
    # Of shards with equal peaks the first one, whose indices are the lowest.
    hits_c = best.gather(0, peaks.argmax(0, keepdim=True))[0] > 0
    if differentiate and vocab_local:
        scores.mul_(((peak_c - lse_c).exp() * counted_c)[:, None])
        scores.scatter_add_(1, index_c1, -is_local_c[:, None].to(scores.dtype))
    return losses_c, hits_c, scores


def _operand(x: Tensor) -> Tensor:
    """As the matrix products want it:

    CPUs have no bf16 product with fp32 result, so there the inputs are widened.
    """
    return (
        x.to(torch.promote_types(x.dtype, torch.float32))
        if x.device.type == "cpu"
        else x
    )


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b with fp32 sums and, unlike plain bf16 `@`, an unrounded fp32 result."""
    if a.dtype in (torch.float32, torch.float64):
        return a @ b
    return torch.mm(a, b, out_dtype=torch.float32)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, in the precision of `total`."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
