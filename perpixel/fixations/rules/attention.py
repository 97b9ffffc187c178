"""Moves through products of matrices: attention, whose probabilities are taken as given, and constant matrices."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx.node import Node

from perpixel.fixations.points import Array, Units
from perpixel.fixations.rules.choice import Chosen, Given, choose, choose_in_slices
from perpixel.fixations.rules.contraction import Product, contraction, einsum_operands, matmul_operands, matrix_axes
from perpixel.fixations.rules.gates import smallness, weighs
from perpixel.fixations.rules.step import Moves, Step
from perpixel.fixations.rules.values import block, host, pick, rows
from perpixel.fixations.trace.operations import operation

_ENTRIES = 1 << 24  # of attention's probabilities, recomputed at once


def matmul(units: Units, step: Step) -> Moves:
    """To the element of the followed tensor with the largest element x element of the other one."""
    product = _product(step)
    if _stays(product, step):
        return _same_token(units, product, step)
    left, right = product.matrices(step.value(product.left), step.value(product.right))
    return list(_moves(units, step, product, [(0, left, right)]))


def reads_matmul(step: Step) -> list[Node]:
    """Both tensors, unless points keep their token."""
    product = _product(step)
    return [] if _stays(product, step) else [product.left, product.right]


def follows_matmul(step: Step) -> list[Node]:
    """The values of attention; or the tensor that depends on the images."""
    return [_product(step).source]


def attention(units: Units, step: Step) -> Moves:
    """As through probabilities times values, the probabilities computed anew from queries, keys and mask."""
    product = _attended(step)
    if _stays(product, step):
        return _same_token(units, product, step)
    return list(_moves(units, step, product, _probabilities(step)))


def reads_attention(step: Step) -> list[Node]:
    """All that attention was computed from, unless points keep their token."""
    return [] if _stays(_attended(step), step) else step.operands


def follows_attention(step: Step) -> list[Node]:
    """The values."""
    return [_attended(step).source]


def _product(step: Step) -> Product:
    left, right, axes = einsum_operands(step) if operation(step.node) == "einsum" else matmul_operands(step)
    tracked = [n in step.run.tracked for n in (left, right)]
    if not all(tracked):
        return contraction(step, left, right, axes, follows_right=tracked[1], is_attention=False)
    of_left, of_right = ((weighs(n, step), smallness(n, step)) for n in (left, right))
    if of_left == of_right:
        remedy = "comes out of a softmax (else a sigmoid, else another activation) or is smaller than the other"
        raise step.refuse(f"a product of two tensors is followed where one of them {remedy}")
    attends = max(of_left, of_right)[0] > 0
    return contraction(step, left, right, axes, follows_right=of_left > of_right, is_attention=attends)


def _attended(step: Step) -> Product:
    query, key, value = (_node(step, name, place) for place, name in enumerate(("query", "key", "value")))
    if value not in step.run.tracked:
        raise step.refuse("its values do not depend on the images")
    shapes = [step.shape(n) for n in (query, key, value)]
    if len(shapes[2]) < 3 or any(shape[:-2] != shapes[2][:-2] for shape in shapes):
        raise step.refuse(f"its queries, keys and values, of shapes {shapes}, differ in more than their length")
    *batch, row, column = range(len(shapes[2]))
    size = dict(enumerate(step.shape())) | {-1: shapes[2][-2]}
    axes = matrix_axes(*[len(shapes[2])] * 3)
    return Product(None, value, axes, (batch, [row], [-1], [column]), size, True, True)  # type: ignore[arg-type]


def _node(step: Step, name: str, place: int) -> Node:
    return step.node.kwargs[name] if name in step.node.kwargs else step.node.args[place]  # type: ignore[return-value]


def _stays(product: Product, step: Step) -> bool:
    if not product.is_attention or step.conventions.attends:
        return False
    _, rows, summed, columns = product.groups
    values, queries = product.length(summed), product.length(rows if product.follows_right else columns)
    if values != queries:
        raise step.refuse(f"attention='skip' needs as many values as queries, not {values} for {queries}")
    return True


def _same_token(units: Units, product: Product, step: Step) -> Moves:
    entry, row, column = product.places(step.element(units))
    element = product.element(entry, row, row if product.follows_right else column, column)
    return [(product.source, step.at_element(units, element, product.source))]


def _probabilities(step: Step) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The probabilities (B, L, S) and values (B, S, d) of some entries of B at a time, and the place of the first."""
    query, key, value = (step.value(_node(step, name, i)) for i, name in enumerate(("query", "key", "value")))
    batch, length, keys = query.shape[:-2], query.shape[-2], key.shape[-2]
    scale = step.argument("scale", 7)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    mask = step.argument("attn_mask", 3)
    if step.argument("is_causal", 5, False):
        mask = torch.ones(length, keys, dtype=torch.bool, device=query.device).tril()
    if mask is not None:
        mask = mask.detach().expand(*batch, length, keys)
    query, key, value = (of.detach().reshape(-1, *of.shape[-2:]) for of in (query, key, value))
    size = max(1, _ENTRIES // (length * keys))
    for start in range(0, len(query), size):
        some = slice(start, start + size)
        scores = (query[some] * scale) @ key[some].transpose(1, 2)
        scores = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
        if mask is not None:
            at = np.unravel_index(np.arange(start, start + len(scores)), batch)
            of = mask[tuple(torch.from_numpy(i).to(query.device) for i in at)]
            scores = scores.masked_fill(~of, -math.inf) if of.dtype == torch.bool else scores + of
        given = scores.softmax(-1)
        yield start, given.masked_fill(scores.isneginf(), 0.0), value[some]


def _moves(units: Units, step: Step, product: Product, parts: Any) -> Iterator[tuple[Node, Units]]:
    """From the elements of left (B, I, S) @ right (B, S, J), which come in parts of B."""
    entry, row, column = product.places(step.element(units))
    for start, left, right in parts:
        inside = ((entry >= start) & (entry < start + len(left))).nonzero()[0]
        if len(inside):
            at = [of.take(inside) for of in (entry, row, column)]
            yield product.source, _chosen(units.take(inside), step, product, left, right, start, at)


def _chosen(
    units: Units, step: Step, product: Product, left: Tensor, right: Tensor, start: int, at: list[Array]
) -> Units:
    (entry, row, column), length = at, left.shape[-1]
    by_row, by_column = block(left.reshape(-1, length)), block(right.transpose(1, 2).reshape(-1, length))
    here = entry - start
    row_of, column_of = here * left.shape[1] + row, here * right.shape[2] + column
    weights, weight_of = (by_row, row_of) if product.follows_right else (by_column, column_of)

    def choose_some(part: slice) -> Chosen:
        given = rows(by_row, row_of[part])
        given *= rows(by_column, column_of[part])
        minus = None if units.minus is None else units.minus[part]
        valid = host(rows(weights, weight_of[part]) != 0) if product.is_attention else None
        return choose(Given(given), minus, valid, step.conventions, step.k)

    chosen = choose_in_slices(len(units), length, choose_some)
    step.watch(chosen.score, product.source)
    entry, row, column, place = chosen.of(entry), chosen.of(row), chosen.of(column), chosen.tap
    element = product.element(entry, row, place, column)
    value = None
    if not step.conventions.published:
        value = pick(block(step.value(product.source).reshape(-1)), element)
    moved = chosen.move(units, chosen.of(units.pixel), chosen.of(units.channel), value)
    return step.at_element(moved, element, product.source)
