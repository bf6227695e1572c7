// Which path a normalisation takes, and in what shape its strips are cut.
#include <algorithm>

#include "device.cuh"
#include "norm_plan.h"

namespace fastdl::cuda {
namespace {

int64_t remainder_of(const void* data, size_t size) { return int64_t(reinterpret_cast<uintptr_t>(data) % size); }

// A stride counts only where there is more than one step of it.
struct Steps {
  int64_t sample, channel, position;

  Steps(const Norm& norm, const Strides& strides)
      : sample(norm.samples > 1 ? strides.sample : 0),
        channel(norm.channels > 1 ? strides.channel : 0),
        position(norm.positions > 1 ? strides.position : 0) {}
};

}  // namespace

bool fits_vectors(const Task& task, const Operand* operands, int count) {
  const Norm& norm = task.norm;
  const int64_t vector = 16 / int64_t(value_bytes(norm.dtype));
  if (norm.channels_last && norm.channels % vector != 0) return false;
  const Steps first(norm, operands[0].strides);
  for (int i = 0; i < count; ++i) {
    const Steps steps(norm, operands[i].strides);
    if (norm.channels_last) {
      if (remainder_of(operands[i].data, 16) != 0 || steps.sample % vector != 0 || steps.position % vector != 0) return false;
    } else if (remainder_of(operands[i].data, 16) != remainder_of(operands[0].data, 16) ||
               (steps.sample - first.sample) % vector != 0 || (steps.channel - first.channel) % vector != 0) {
      return false;  // every strip must begin at the same place of its 16 bytes in each tensor
    }
  }
  return true;
}

bool plan_strips(const Task& task, const Target& target, int vector, int kept, bool aligned, Plan& plan) {
  const Norm& norm = task.norm;
  Strips& strips = plan.strips;
  strips.segments_are_samples = task.across_samples;
  strips.slabs_a_sample = task.groups;
  strips.segments = task.across_samples ? norm.samples : norm.channels / task.groups;
  strips.positions = norm.positions;
  const int64_t vectors = divide_up(norm.positions + (aligned ? 0 : vector - 1), vector);
  const int64_t bytes = int64_t(value_bytes(norm.dtype)) * vector * kept;  // of one slot of one thread

  // A team of 8 threads and more reads whole lines; of these, the width that leaves the fewest of them idle.
  strips.lanes = 0;
  while (strips.lanes < 3 && (1 << strips.lanes) < vectors) ++strips.lanes;
  if (strips.lanes == 3) {
    int64_t least = INT64_MAX;
    for (int lanes = 5; lanes >= 3; --lanes) {
      const int64_t padded = divide_up(vectors, 1 << lanes) << lanes;
      if (padded < least) least = padded, strips.lanes = lanes;
    }
  }
  const int64_t chunks = divide_up(vectors, 1 << strips.lanes);  // rounds of a whole segment

  auto shape = [&](int ranks, int threads) {
    const int teams = threads >> strips.lanes;
    int64_t least = INT64_MAX;
    auto consider = [&](int64_t rounds) {
      const int64_t pieces = divide_up(chunks, rounds), items = strips.segments * pieces, each = divide_up(items, ranks);
      const int64_t slots = divide_up(each, teams) * rounds;
      if (slots > least || pieces > INT32_MAX) return;
      least = slots;
      strips.rounds = int(rounds);
      strips.pieces = unsigned(pieces);
      strips.items = items;
      strips.items_per_rank = each;
      strips.turns = int(divide_up(each, teams));
    };
    for (int64_t rounds = 1; rounds <= std::min<int64_t>(chunks, 16); ++rounds) consider(rounds);
    // A team that takes whole segments loads a channel's parameters once.
    if (chunks > 16 && chunks <= INT32_MAX) consider(chunks);
    strips.slots = int(std::min<int64_t>(least, INT32_MAX));
    plan.ranks = ranks;
    plan.launch.threads = threads;
    return least * threads * bytes;
  };
  // Some four vectors a thread: enough in flight, and few threads to join.
  auto threads_for = [&](int64_t count) {
    const int64_t wanted = divide_up(divide_up(count, 4), 32) * 32;
    return int(std::min<int64_t>(std::max<int64_t>(wanted, 32), count > 256 * 16 ? 512 : 256));
  };

  const int64_t scratch = int64_t(strips_scratch_bytes()), all = strips.segments * vectors;
  const int64_t limit = target.shared_bytes - scratch;
  const bool split_only = target.path == Path::split;
  const int most_ranks = target.capability >= 90 && target.path != Path::block ? 8 : 1;
  int best = 0;
  // Two blocks of a multiprocessor at a time, so that one loads while the other computes; or else one.
  for (int64_t room : {(limit - scratch) / 2, limit}) {
    for (int ranks = target.path == Path::cluster ? 2 : 1; ranks <= most_ranks && !split_only; ranks *= 2) {
      const int64_t needed = shape(ranks, threads_for(divide_up(all, ranks)));
      if (needed > room) continue;
      best = ranks;
      if (plan.slabs * ranks >= target.multiprocessors || needed <= 8192) break;
    }
    if (best) break;
  }
  // With half of the machine idle, reading twice is faster; but for little work the further launches are not.
  const bool small = plan.slabs * all * bytes <= (int64_t(2) << 20);
  if (best && (target.path != Path::automatic || small || plan.slabs * best * 2 >= target.multiprocessors)) {
    const int64_t needed = shape(best, threads_for(divide_up(all, best)));
    plan.path = best > 1 ? Path::cluster : Path::block;
    plan.launch.cluster = best;
    plan.launch.shared_bytes = size_t(needed + scratch);
  } else {
    // Some 16 KB of each tensor: several blocks a multiprocessor, and long pieces, each of which leaves a partial result.
    const int64_t room = std::min<int64_t>((16 << 10) * (kept + 1), limit / 2);
    const int threads = int(std::max<int64_t>(std::min({int64_t(256), divide_up(all, 32) * 32, room / bytes / 32 * 32}), 32));
    const int64_t slots = std::max<int64_t>(room / (threads * bytes), 1);
    const int64_t rounds = divide_up(chunks, divide_up(chunks, slots)), pieces = divide_up(chunks, rounds);
    if (pieces > INT32_MAX) return false;
    strips.rounds = int(rounds);
    strips.pieces = unsigned(pieces);
    strips.items = strips.segments * pieces;
    strips.turns = int(std::max<int64_t>(slots / rounds, 1));
    strips.items_per_rank = int64_t(threads >> strips.lanes) * strips.turns;
    strips.slots = strips.turns * strips.rounds;
    plan.ranks = int(divide_up(strips.items, strips.items_per_rank));
    plan.launch.threads = threads;
    plan.path = Path::split;
    plan.launch.cluster = 1;
    plan.launch.shared_bytes = size_t(strips.slots * threads * bytes + scratch);
    if (int64_t(plan.launch.shared_bytes) > target.shared_bytes) return false;
  }
  plan.launch.blocks = plan.slabs * plan.ranks;
  return true;
}

Plan make_plan(const Task& task, const Target& target, bool backward, bool vector, int kept) {
  const Norm& norm = task.norm;
  Plan plan{};
  plan.by_rows = norm.channels_last;
  plan.slabs = task.across_samples ? norm.channels : norm.samples * task.groups;
  plan.count = double(norm.samples) * double(norm.channels) * double(norm.positions) / double(plan.slabs);
  plan.launch.dtype = norm.dtype;
  const int width = 16 / int(value_bytes(norm.dtype));
  for (bool wide : {vector, false}) {
    plan.launch.vector = wide;
    if (plan.by_rows && plan_rows(task, target, backward, wide ? width : 1, kept, plan)) break;
    if (plan.by_rows) continue;
    const Steps steps(norm, norm.input_strides);
    const bool aligned = remainder_of(norm.input, 16) == 0 && steps.sample % width == 0 && steps.channel % width == 0;
    if (plan_strips(task, target, wide ? width : 1, kept, aligned || !wide, plan)) break;
  }
  return plan;
}

Target current_target() {
  const device::Machine machine = device::machine();
  return {machine.multiprocessors, machine.shared_bytes, machine.capability, Path::automatic};
}

const char* error_text(int status) { return device::status_text(status); }

}  // namespace fastdl::cuda
