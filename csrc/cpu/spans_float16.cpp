#include "spans_of.h"

namespace fastdl {

FASTDL_SPANS(Float16)

}  // namespace fastdl
