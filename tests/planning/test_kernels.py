"""Counts of kernels and bytes in the text of a GPU program."""

import pytest

from nvae_jax.planning import hlo
from nvae_jax.planning.kernels import KernelCounts, count_kernels

MB = 2**20

# As XLA's GPU compiler writes, shortened: a loop that takes a slice of one stack and puts one into
# another, a library's convolution, a copy, and what is no kernel. Arrays of 1 MB: f32[512,512].
TEXT = """
HloModule jit_step, is_scheduled=true

%fused_slice (p0: f32[10,512,512], p1: s32[]) -> f32[512,512] {
  %p0 = f32[10,512,512]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %slice = f32[1,512,512]{2,1,0} dynamic-slice(%p0, %p1, %p1, %p1), dynamic_slice_sizes={1,512,512}
  %flat = f32[512,512]{1,0} bitcast(%slice)
  ROOT %twice = f32[512,512]{1,0} add(%flat, %flat)
}

%fused_update (q0: f32[10,512,512], q1: f32[512,512], q2: s32[]) -> f32[10,512,512] {
  %q0 = f32[10,512,512]{2,1,0} parameter(0)
  %q1 = f32[512,512]{1,0} parameter(1)
  %q2 = s32[] parameter(2)
  %one = f32[1,512,512]{2,1,0} bitcast(%q1)
  ROOT %updated = f32[10,512,512]{2,1,0} dynamic-update-slice(%q0, %one, %q2, %q2, %q2)
}

%body (state: (s32[], f32[10,512,512], f32[10,512,512])) -> (s32[], f32[10,512,512], /*index=2*/\
f32[10,512,512]) {
  %state = (s32[], f32[10,512,512]{2,1,0}, f32[10,512,512]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %from = f32[10,512,512]{2,1,0} get-tuple-element(%state), index=1
  %into = f32[10,512,512]{2,1,0} get-tuple-element(%state), index=2
  %taken = f32[512,512]{1,0} fusion(%from, %i), kind=kLoop, calls=%fused_slice
  %put = f32[10,512,512]{2,1,0} fusion(%into, %taken, %i), kind=kLoop, calls=%fused_update
  ROOT %next = (s32[], f32[10,512,512]{2,1,0}, f32[10,512,512]{2,1,0}) tuple(%i, %from, %put)
}

%condition (state.1: (s32[], f32[10,512,512], f32[10,512,512])) -> pred[] {
  %state.1 = (s32[], f32[10,512,512]{2,1,0}, f32[10,512,512]{2,1,0}) parameter(0)
  ROOT %less = pred[] fusion(%state.1), kind=kLoop, calls=%compare
}

ENTRY %main (x: f32[10,512,512], y: f32[512,512]) -> f32[512,512] {
  %x = f32[10,512,512]{2,1,0} parameter(0)
  %y = f32[512,512]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %first = (s32[], f32[10,512,512]{2,1,0}, f32[10,512,512]{2,1,0}) tuple(%zero, %x, %x)
  %loop = (s32[], f32[10,512,512]{2,1,0}, f32[10,512,512]{2,1,0}) while(%first), \
condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"10"}}
  %conv = (f32[512,512]{1,0}, u8[0]{0}) custom-call(%y, %y), custom_call_target="__cudnn$conv"
  %result = f32[512,512]{1,0} get-tuple-element(%conv), index=0
  ROOT %copy = f32[512,512]{1,0} copy(%result)
}
"""
# A read and a write of a megabyte for each of the two kernels of a round, and eight for the indices
# of the slices; the convolution reads its argument twice; the copy.
MOVED = 10 * 2 * (2 * MB + 4) + 3 * MB + 2 * MB


def test_kernels_in_loops_slices_and_library_calls_are_counted():
    assert count_kernels(hlo.parse(TEXT)) == KernelCounts(10 * 2 + 2, MOVED, 0)


def test_loops_of_unknown_length_are_counted_apart():
    unknown = TEXT.replace(', backend_config={"known_trip_count":{"n":"10"}}', "")
    kernels = count_kernels(hlo.parse(unknown))
    assert (kernels.count, kernels.uncounted_loops) == (2 + 2, 1)


@pytest.mark.parametrize(
    ("named", "branches"),
    [
        ("branch_computations={%small, %large}", ["small", "large"]),
        ("true_computation=%small, false_computation=%large", ["small", "large"]),
    ],
)
def test_the_branch_that_moves_most_bytes_counts(named, branches):
    text = f"""
%small (a: f32[8]) -> f32[8] {{
  ROOT %copy.0 = f32[8]{{0}} copy(%a)
}}

%large (b: f32[8]) -> f32[8] {{
  %b = f32[8]{{0}} parameter(0)
  %copy.1 = f32[8]{{0}} copy(%b)
  ROOT %copy.2 = f32[8]{{0}} copy(%copy.1)
}}

ENTRY %main (p: pred[], x: f32[8]) -> f32[8] {{
  %p = pred[] parameter(0)
  %x = f32[8]{{0}} parameter(1)
  ROOT %chosen = f32[8]{{0}} conditional(%p, %x, %x), {named}
}}
"""
    program = hlo.parse(text)
    assert program.computations["main"]["chosen"].branches == branches
    assert count_kernels(program) == KernelCounts(2, 2 * 2 * 32, 0)


def test_an_array_that_is_not_only_sliced_is_read_whole():
    both = TEXT.replace("add(%flat, %flat)", "add(%flat, %p0)")
    assert count_kernels(hlo.parse(both)).bytes == MOVED + 10 * (10 - 1) * MB
