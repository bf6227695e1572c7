// The inner loops of the norms, over spans of memory of a storage type T; the arithmetic is in A (float, or double for double).
// Half precision is widened in registers: through a buffer in the first-level cache, GroupNorm + SiLU in bfloat16 took no less time
// than eager torch.
//
// Normalising is one affine map of the centred input, u = (x - center) scale + shift (+ residual), y = act(u), and its backward is
// affine too, with gu = g act'(u):  gx = gu by_gradient + (x - center) by_input + constant.
// A *strip* is n values of one channel, so the coefficients are scalars: the NCHW layout. *Rows* hold a channel in each column, so
// they are arrays: channels last. Each loop exists once an activation; a table of pointers picks it outside of all loops.
#pragma once

#include "activations.h"
#include "storage.h"

namespace fastdl {

template <class A>
struct Affine {
  A center, scale, shift;
};

template <class A>
struct Slope {
  A by_gradient, by_input, constant;
};

// The same, an array each, one value a column.
template <class A>
struct AffineColumns {
  const A *center, *scale, *shift;
};

template <class A>
struct SlopeColumns {
  const A *by_gradient, *by_input, *constant;
};

// Rows of values: the first, and how many values from one row to the next. Null where there is none.
template <class P>
struct Rows {
  P* first;
  int64_t stride;
  explicit operator bool() const { return first != nullptr; }
};

// How many values from a strip of n values to the next one, which is of the next channel.
struct StripSteps {
  int64_t x = 0, r = 0, g = 0, y = 0;
};

// `ahead` is how far ahead of x (and of g) to read, in values, while computing: memory is then never idle. What comes next is
// usually the next group, which is not where the processor's own prefetching would look, as this one is gone through twice.
template <class T, class A = Arithmetic<T>>
struct Spans {
  // y = act((x - center) scale + shift + r). Strips come several in a call, with their coefficients: one of 64 values takes less
  // time than the call.
  void (*forward_strips)(const T* x, const T* r, T* y, StripSteps steps, int64_t n, int64_t strips, const Affine<A>* maps,
                         A parameter, int64_t ahead);
  void (*forward_rows)(Rows<const T> x, Rows<const T> r, Rows<T> y, int64_t rows, int64_t columns, AffineColumns<A> map,
                       A parameter, int64_t ahead);
  // sums[0] += sum gu, sums[1] += sum gu (x - center), two a strip; by column for rows, whose arrays end in room for a whole
  // vector. Where `keep` is not null, keep = gu, one strip behind the other.
  void (*reduce_strips)(const T* x, const T* r, const T* g, A* keep, StripSteps steps, int64_t n, int64_t strips,
                        const Affine<A>* maps, A parameter, double* sums, int64_t ahead);
  void (*reduce_rows)(Rows<const T> x, Rows<const T> r, Rows<const T> g, Rows<A> keep, int64_t rows, int64_t columns,
                      AffineColumns<A> map, A parameter, double* gradient_sums, double* product_sums, int64_t ahead);
  // gx = gu by_gradient + (x - center) by_input + constant; gr = gu. Either output may be null.
  void (*backward_strips)(const T* x, const T* r, const T* g, T* gx, T* gr, StripSteps steps, int64_t n, int64_t strips,
                          const Affine<A>* maps, const Slope<A>* slopes, A parameter);
  void (*backward_rows)(Rows<const T> x, Rows<const T> r, Rows<const T> g, Rows<T> gx, Rows<T> gr, int64_t rows, int64_t columns,
                        AffineColumns<A> map, SlopeColumns<A> slope, A parameter);
};

// The backward from gu as reduce kept it, in the arithmetic type.
template <class T, class A = Arithmetic<T>>
struct KeptSpans {
  void (*backward_strips)(const T* x, const T* r, const A* gu, T* gx, T* gr, StripSteps steps, int64_t n, int64_t strips,
                          const Affine<A>* maps, const Slope<A>* slopes, A parameter);
  void (*backward_rows)(Rows<const T> x, Rows<const T> r, Rows<const A> gu, Rows<T> gx, Rows<T> gr, int64_t rows, int64_t columns,
                        AffineColumns<A> map, SlopeColumns<A> slope, A parameter);
};

// Defined in a file a type, spans_<type>.cpp, so that they compile side by side.
template <class T>
const Spans<T>& spans(Activation activation);
template <class T>
const KeptSpans<T>& kept_spans();

// Whether g act'(u) takes so long that it is better kept in the cache between the two passes of a backward than computed twice.
inline bool is_costly(Activation activation) {
  return activation != Activation::identity && activation != Activation::relu && activation != Activation::leaky_relu &&
         activation != Activation::hardswish;
}

}  // namespace fastdl
