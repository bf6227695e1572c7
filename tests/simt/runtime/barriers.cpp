// Barriers of blocks and clusters, and the collectives of warps.
#include <cstring>

#include "machine.h"
#include "report.h"

namespace simt {

namespace {

bool same(Site a, Site b) { return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0); }

void finish(Meeting& meeting) {
  const std::vector<Thread*> waiting = std::move(meeting.waiting);
  const Clock gathered = std::move(meeting.gathered);
  meeting = Meeting{};
  for (Thread* thread : waiting) {
    race::acquire(*thread, gathered);
    wake(*thread);
  }
}

const char* name_of(Collective kind) {
  switch (kind) {
    case Collective::warp_barrier: return "a warp barrier";
    case Collective::shuffle: return "a shuffle";
    case Collective::vote: return "a vote";
    case Collective::match: return "a match";
    case Collective::elect: return "an election";
    case Collective::matrix_load: return "ldmatrix";
    case Collective::matrix_store: return "stmatrix";
    case Collective::matrix_multiply: return "mma";
    case Collective::warp_group: return "wgmma";
  }
  return "";
}

// These are defined for whole warps only.
bool needs_whole_warp(Collective kind) {
  return kind == Collective::matrix_load || kind == Collective::matrix_store || kind == Collective::matrix_multiply ||
         kind == Collective::warp_group;
}

void complete(Warp& warp, size_t which) {
  OpenCollective open = warp.open[which];
  warp.open.erase(warp.open.begin() + long(which));
  if (open.compute != nullptr) {
    Lanes lanes;
    for (int i = 0; i < 32; ++i) lanes.lane[i] = (open.arrived >> i & 1u) != 0 ? open.operand[i] : nullptr;
    lanes.site = open.site;
    open.compute(lanes);
  }
  if (open.kind == Collective::warp_barrier && race::enabled) {
    Clock gathered;
    for (Thread* thread : warp.lanes)
      if ((open.arrived >> thread->lane & 1u) != 0) race::release(*thread, gathered);
    for (Thread* thread : warp.lanes)
      if ((open.arrived >> thread->lane & 1u) != 0) race::acquire(*thread, gathered);
  }
  for (Thread* thread : warp.lanes)
    if ((open.arrived >> thread->lane & 1u) != 0) wake(*thread);
}

}  // namespace

void block_barrier(Site site) {
  Thread& thread = current("block_barrier", site);
  Block& block = *thread.block;
  Meeting& meeting = block.barriers[0];
  if (block.alive != block.thread_count)
    fail("divergent barrier", site, "%u threads of the block have left the kernel", block.thread_count - block.alive);
  if (meeting.arrived > 0 && !same(meeting.site, site))
    fail("divergent barrier", site, "%u threads of the block wait at another one, %s", meeting.arrived,
         place(meeting.site).c_str());
  meeting.site = site;
  race::release(thread, meeting.gathered);
  meeting.waiting.push_back(&thread);
  if (++meeting.arrived == block.thread_count) finish(meeting);
  else wait({"the block's barrier", site});
  thread.state = State::ready;
}

void named_barrier(int id, int threads, bool waits, Site site) {
  Thread& thread = current("named_barrier", site);
  if (id < 1 || id > 15 || threads <= 0 || threads % 32 != 0)
    fail("wrong argument", site, "named barriers are 1 to 15, of a multiple of 32 threads; got barrier %d of %d", id, threads);
  Meeting& meeting = thread.block->barriers[id];
  if (meeting.arrived > 0 && meeting.expected != unsigned(threads))
    fail("divergent barrier", site, "barrier %d is for %d threads here and for %u at %s", id, threads, meeting.expected,
         place(meeting.site).c_str());
  meeting.site = site;
  meeting.expected = unsigned(threads);
  race::release(thread, meeting.gathered);
  if (waits) meeting.waiting.push_back(&thread);
  if (++meeting.arrived == meeting.expected) finish(meeting);
  else if (waits) wait({"named barrier", site, 0, nullptr, 0, id});
  thread.state = State::ready;
}

void cluster_arrive(Site site) {
  Thread& thread = current("cluster_arrive", site);
  Cluster& cluster = *simulation().cluster;
  if (cluster.alive != cluster.thread_count)
    fail("divergent barrier", site, "%u threads of the cluster have left the kernel", cluster.thread_count - cluster.alive);
  unsigned& phase = cluster.arrived_phase[thread.identity];
  if (phase != cluster.barrier_phase) fail("divergent barrier", site, "the thread arrives twice without waiting");
  ++phase;
  race::release(thread, cluster.barrier_gathered);
  if (++cluster.barrier_arrived < cluster.thread_count) return;
  cluster.barrier_arrived = 0;
  ++cluster.barrier_phase;
  cluster.barrier_done = std::move(cluster.barrier_gathered);
  cluster.barrier_gathered = Clock{};
  for (Thread* waiting : cluster.barrier_waiting) wake(*waiting);
  cluster.barrier_waiting.clear();
}

void cluster_wait(Site site) {
  Thread& thread = current("cluster_wait", site);
  Cluster& cluster = *simulation().cluster;
  const unsigned phase = cluster.arrived_phase[thread.identity];
  if (phase == 0) fail("divergent barrier", site, "the thread waits for a cluster barrier at which it has not arrived");
  if (cluster.barrier_phase < phase) {
    cluster.barrier_waiting.push_back(&thread);
    wait({"the cluster's barrier", site});
  }
  race::acquire(thread, cluster.barrier_done);
}

void leave_barriers(Thread& thread) {
  const Meeting& meeting = thread.block->barriers[0];
  if (meeting.arrived > 0)
    fail("divergent barrier", meeting.site, "%u threads of the block wait there, and another leaves the kernel", meeting.arrived);
  const Cluster& cluster = *simulation().cluster;
  if (!cluster.barrier_waiting.empty())
    fail("divergent barrier", cluster.barrier_waiting[0]->wait.site, "%zu threads of the cluster wait there, and another leaves",
         cluster.barrier_waiting.size());
}

void collective(Collective kind, unsigned mask, Site site, void* operand, Compute compute) {
  Thread& thread = current(name_of(kind), site);
  Warp& warp = *thread.warp;
  const unsigned bit = 1u << thread.lane;
  if ((mask & bit) == 0) fail("wrong mask", site, "lane %u is not in its own mask %08x", thread.lane, mask);
  if (needs_whole_warp(kind) && warp.alive != 0xffffffffu)
    fail("wrong mask", site, "%s needs all 32 lanes; those of mask %08x are there", name_of(kind), warp.alive);
  // CUDA lets a mask name lanes that have left, but whether they had is then a matter of time; lanes beyond the block's end are
  // none.
  unsigned left = mask & ~warp.alive;
  if (warp.lanes.size() < 32) left &= (1u << warp.lanes.size()) - 1;
  if (left != 0) fail("wrong mask", site, "the mask %08x names lanes %08x, which have left the kernel", mask, left);
  size_t which = 0;
  while (which < warp.open.size() && (warp.open[which].mask & mask) == 0) ++which;
  if (which == warp.open.size()) {
    warp.open.push_back({kind, mask, 0, site, compute, {}});
  } else {
    const OpenCollective& open = warp.open[which];
    if (open.mask != mask || open.kind != kind || !same(open.site, site) || (open.arrived & bit) != 0)
      fail("wrong mask", site, "lane %u comes to %s with mask %08x, while lanes %08x wait at %s, %s, with mask %08x", thread.lane,
           name_of(kind), mask, open.arrived, name_of(open.kind), place(open.site).c_str(), open.mask);
  }
  OpenCollective& open = warp.open[which];
  open.arrived |= bit;
  open.operand[thread.lane] = operand;
  thread.state = State::waiting;
  if (open.arrived == (mask & warp.alive)) complete(warp, which);
  if (thread.state == State::waiting) wait({name_of(kind), site, mask});
}

void leave_collectives(Thread& thread) {
  for (const OpenCollective& open : thread.warp->open)
    if ((open.mask >> thread.lane & 1u) != 0)
      fail("wrong mask", open.site, "lanes %08x wait with mask %08x, and lane %u, which it names, leaves the kernel", open.arrived,
           open.mask, thread.lane);
}

std::string waiting_threads() {
  std::string text;
  char line[512];
  for (const auto& block : simulation().cluster->blocks)
    for (size_t w = 0; w < block->warps.size(); ++w) {
      std::vector<Thread*> lanes = block->warps[w]->lanes;
      while (!lanes.empty()) {
        const Wait first = lanes[0]->wait;
        const State state = lanes[0]->state;
        unsigned mask = 0;
        std::vector<Thread*> others;
        for (Thread* thread : lanes) {
          const Wait& its = thread->wait;
          const bool alike =
              thread->state == state &&
              (state != State::waiting || (its.what == first.what && same(its.site, first.site) && its.mask == first.mask &&
                                           its.barrier == first.barrier && its.parity == first.parity && its.id == first.id));
          if (alike) mask |= 1u << thread->lane;
          else others.push_back(thread);
        }
        int n = std::snprintf(line, sizeof line, "  block (%u, %u, %u) warp %zu lanes %08x: ", block->index.x, block->index.y,
                              block->index.z, w, mask);
        text.append(line, size_t(n));
        if (state == State::done) text += "left the kernel";
        else if (state == State::ready) text += "ready to run";
        else {
          text += "at " + std::string(first.what) + ", " + place(first.site);
          if (first.mask != 0) std::snprintf(line, sizeof line, ", with mask %08x", first.mask), text += line;
          if (first.id != 0) std::snprintf(line, sizeof line, ", barrier %d", first.id), text += line;
          if (first.barrier != nullptr) std::snprintf(line, sizeof line, ", for parity %u", first.parity), text += line;
        }
        text += "\n";
        lanes = others;
      }
    }
  return text;
}

}  // namespace simt
