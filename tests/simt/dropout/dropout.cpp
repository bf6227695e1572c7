// Dropout as a case, as a whole or in its last blocks alone.
#include "dropout.h"

#include "simt/case.h"

using namespace fastdl;
using namespace fastdl::cuda;

SIMT_CASE(dropout) {
  DropoutCall call{};
  call.dtype = Dtype(c.integer("dtype"));
  call.samples = c.integer("samples");
  call.channels = c.integer("channels");
  call.lines = c.integer("lines");
  call.width = c.integer("width");
  // Of a tensor that no memory holds the arrays are the end alone, from this many bytes on.
  const auto moved = [&](const void* array) {
    return array ? reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(array) - uintptr_t(c.integer("missing_bytes"))) : nullptr;
  };
  call.input = moved(c.array<const void>("input"));
  call.residual = moved(c.array<const void>("residual"));
  call.output = moved(c.array<void>("output"));
  call.seed_on_device = c.array<const int64_t>("seed_on_device");
  call.seed = uint64_t(c.integer("seed"));
  call.dropped = int32_t(c.integer("dropped"));
  const int64_t blocks = dropout_blocks(call), last = c.integer("last_blocks");
  DropoutBlocks part;
  if (last > 0) part.first = blocks > last ? blocks - last : 0;
  c.report("status", dropout_forward(call, nullptr, part));
  c.report("blocks", blocks);
}
