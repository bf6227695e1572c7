#include "spans_of.h"

namespace fastdl {

FASTDL_SPANS(float)

}  // namespace fastdl
