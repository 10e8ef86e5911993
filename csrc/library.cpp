// The schemas of all operators: a table of contents.
//
// These are raw operators without gradients. openrec/ops registers fake kernels and gradients for them from Python
// (the stable ABI has no autograd) and holds the public functions, their checks and their references.
//
// Conventions shared by every backend:
// * "compute type": float64 when the first tensor is float64, else float32. Half types are storage only.
// * Tensors of one operator may differ in dtype as said below; anything else is refused in Python.
// * dcnv3: input and grad have one dtype; offset and mask have any dtype each and are read in the compute type.
//   grad_offset and grad_mask come back in the dtype of offset and mask. grad_mask is empty (0 elements) without a mask.
// * selective_scan: u, delta, z, grad have any dtype each; A, B, C, D, delta_bias are read in the compute type, which is
//   float64 when any tensor is float64. Python passes A, D and delta_bias in the compute type already.
//   out has u's dtype, last_state the compute type. B and C may have any strides (0 too). Gradients come back in the
//   dtype of their tensor, dA, dD, ddelta_bias in the compute type. Absent inputs get empty gradients.
// * deform_sample: value and grad have one dtype; loc and weight are in the compute type, as are their gradients.
//   Without weight the output is [B, M, c, Q, P], else [B, M, c, Q].
// * A point outside [-1, W) x [-1, H), or NaN, reads zero and gets zero gradients; the derivative at a pixel is that of
//   the cell to its right (floor).
// * Sums run in an order that does not depend on the number of threads: gradients are the same bits in every run.

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(openrec, m) {
  m.def(
      "dcnv3_forward(Tensor input, Tensor offset, Tensor? mask, int[2] kernel_size, int[2] stride, int[2] pad, "
      "int[2] dilation, int group, float offset_scale, bool remove_center) -> Tensor");
  m.def(
      "dcnv3_backward(Tensor grad, Tensor input, Tensor offset, Tensor? mask, int[2] kernel_size, int[2] stride, "
      "int[2] pad, int[2] dilation, int group, float offset_scale, bool remove_center) -> (Tensor, Tensor, Tensor)");
  // u, delta, z, out: [B, D, L], channels-last [B, L, D]. B, C: [B, G, N, L], channels-last [B, L, G, N]. A: [D, N].
  // last_state: [B, D, N], empty unless return_last_state.
  m.def(
      "selective_scan_forward(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, "
      "Tensor? delta_bias, bool delta_softplus, bool reverse, bool channels_last, bool return_last_state) "
      "-> (Tensor, Tensor)");
  // -> du, ddelta, dA, dB, dC, dD, dz, ddelta_bias
  m.def(
      "selective_scan_backward(Tensor grad, Tensor? grad_last_state, Tensor u, Tensor delta, Tensor A, Tensor B, "
      "Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, bool delta_softplus, bool reverse, bool channels_last) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  // value: [B, M, c, H, W], loc: [B, M, Q, P, 2] in [0, 1], weight: [B, M, Q, P].
  m.def("deform_sample_forward(Tensor value, Tensor loc, Tensor? weight) -> Tensor");
  m.def("deform_sample_backward(Tensor grad, Tensor value, Tensor loc, Tensor? weight) -> (Tensor, Tensor, Tensor)");
}
