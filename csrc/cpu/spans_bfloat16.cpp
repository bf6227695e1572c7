#include "spans_of.h"

namespace fastdl {

FASTDL_SPANS(BFloat16)

}  // namespace fastdl
