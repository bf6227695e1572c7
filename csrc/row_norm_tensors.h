// What the bindings of layer_norm and rms_norm share on every device: the schemas, and how a tensor of any strides is seen as rows,
// which the kernels read in place or from a contiguous copy. Included by bindings_row_norms.cpp and cuda/bindings_row_norms.cpp
// alone.
#pragma once

#include <initializer_list>

#include "row_norm_types.h"
#include "tensors.h"

namespace fastdl {

inline constexpr const char* layer_norm_forward_schema =
    "layer_norm_forward(Tensor input, Tensor? residual, Tensor? weight, Tensor? bias, int dimensions, float eps) "
    "-> (Tensor, Tensor, Tensor)";
inline constexpr const char* layer_norm_backward_schema =
    "layer_norm_backward(Tensor grad_output, Tensor? grad_sum, Tensor input, Tensor? residual, Tensor? weight, Tensor? bias, "
    "Tensor statistics, int dimensions, float eps, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor)";
inline constexpr const char* rms_norm_forward_schema =
    "rms_norm_forward(Tensor input, Tensor? residual, Tensor? weight, int dimensions, float eps) -> (Tensor, Tensor, Tensor)";
inline constexpr const char* rms_norm_backward_schema =
    "rms_norm_backward(Tensor grad_output, Tensor? grad_sum, Tensor input, Tensor? residual, Tensor? weight, Tensor statistics, "
    "int dimensions, float eps, bool[] needs) -> (Tensor, Tensor, Tensor)";

// The tensor, or null where there is none.
inline const Tensor* pointer_to(const MaybeTensor& tensor) { return tensor ? &*tensor : nullptr; }

// A call's activations as `rows` rows of `width` values, the product of the last `dimensions` sizes. Rows come as outer x inner:
// the leading dimensions are cut in two where the first tensor that is not one run of equally distant rows has its break, such as
// behind the batch of a transposed (L, N, width) or of an embedding of positions that is expanded over the batch.
struct RowGeometry {
  Shape sizes, strides;                      // of the activations; the strides of a contiguous tensor
  Shape parameter_sizes, parameter_strides;  // of weight and bias, likewise
  int64_t rows = 1, width = 1;
  int64_t inner = 1;  // rows to one step of the outer stride; `rows` where no tensor has a break

  // `others` may hold null pointers. The tensors that come first are the most likely to be read in place.
  RowGeometry(const Tensor& input, int64_t dimensions, std::initializer_list<const Tensor*> others) {
    const auto given = input.sizes();
    sizes.assign(given.begin(), given.end());
    leading_ = sizes.size() - size_t(dimensions);
    parameter_sizes.assign(sizes.begin() + leading_, sizes.end());
    strides = dense(sizes);
    parameter_strides = dense(parameter_sizes);
    for (size_t i = 0; i < sizes.size(); ++i) (i < leading_ ? rows : width) *= sizes[i];
    split_ = break_of(input).value_or(0);
    for (const Tensor* other : others)
      if (split_ == 0 && other) split_ = break_of(*other).value_or(0);
    for (size_t i = split_; i < leading_; ++i) inner *= sizes[i];
  }

  bool empty() const { return rows * width == 0; }

  // The strides of the tensor's rows, if the kernels can read it where it is.
  std::optional<RowStrides> in_place(const Tensor& tensor) const {
    const std::optional<size_t> at = break_of(tensor);
    if (!at || (*at != 0 && *at != split_)) return std::nullopt;
    const auto given = tensor.strides();
    return RowStrides{last_stride(given, 0, split_), last_stride(given, split_, leading_)};
  }

  RowStrides contiguous() const { return {inner * width, width}; }

 private:
  size_t leading_, split_ = 0;  // of the leading dimensions, those from split_ on are inner

  static Shape dense(const Shape& sizes) {
    Shape strides(sizes.size(), 1);
    for (size_t i = sizes.size() - 1; i > 0; --i) strides[i - 1] = strides[i] * (sizes[i] > 0 ? sizes[i] : 1);
    return strides;
  }

  // The first leading dimension of the inner rows, 0 where all rows are equally far apart. Nothing where there are two such breaks,
  // or where a row is not contiguous. Dimensions of one element may have any stride.
  std::optional<size_t> break_of(const Tensor& tensor) const {
    const auto given = tensor.strides();
    int64_t expected = 1;
    for (size_t i = sizes.size(); i-- > leading_;) {
      if (sizes[i] == 1) continue;
      if (given[i] != expected) return std::nullopt;
      expected *= sizes[i];
    }
    size_t found = 0;
    bool innermost = true;
    for (size_t i = leading_; i-- > 0;) {
      if (sizes[i] == 1) continue;
      if (!innermost && given[i] != expected) {
        if (found) return std::nullopt;
        found = i + 1;
      }
      innermost = false;
      expected = given[i] * sizes[i];
    }
    return found;
  }

  // Of the innermost dimension from begin to end that has more than one element.
  template <class Given>
  int64_t last_stride(const Given& given, size_t begin, size_t end) const {
    for (size_t i = end; i-- > begin;)
      if (sizes[i] != 1) return given[i];
    return 0;
  }
};

// A tensor that the kernels can read: itself, or a contiguous copy. make(sizes, strides, like) allocates, in the dtype of `like`.
struct RowOperand {
  Tensor tensor;
  RowStrides strides;

  template <class Make>
  RowOperand(const Tensor& given, const RowGeometry& geometry, Make&& make) : tensor(given) {
    if (const auto fit = geometry.in_place(given)) {
      strides = *fit;
      return;
    }
    tensor = make(geometry.sizes, geometry.strides, given);
    torch::stable::copy_(tensor, given);
    strides = geometry.contiguous();
  }
};

// An uninitialised contiguous tensor for what is saved of each row: in float32, of float64 input in float64.
inline Tensor empty_row_statistics(const Shape& sizes, const Tensor& input) {
  const ScalarType wide = input.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Shape strides(sizes.size(), 1);
  if (sizes.size() == 2) strides[0] = sizes[1] > 0 ? sizes[1] : 1;
  return empty_strided(sizes, strides, wide, input);
}

}  // namespace fastdl
