// Copies that are under way: they are held until somebody must wait for them (in random order, sometimes let go earlier), and until
// then the place they go to holds NaN.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <vector>

#include "race.h"
#include "simt/runtime.h"

namespace simt {

struct Thread;

// A copy in pieces, since a tensor tile is none of one piece.
struct Piece {
  void* to;
  const void* from;  // null for zeros
  uint32_t bytes;
};
struct Copy {
  std::vector<Piece> pieces;
  Site site;
  Clock seen;  // by the thread that started it
  unsigned bytes = 0;
};

struct ThreadCopies {
  std::vector<Copy> open;                // cp.async since the last commit
  std::deque<std::vector<Copy>> groups;  // committed
  std::vector<Copy> open_stores;         // bulk stores since the last commit
  std::deque<std::vector<Copy>> store_groups;
};

struct Mbarrier {
  unsigned count = 0, engine = 0;
  int64_t pending = 0, bytes = 0;  // arrivals and bytes that the current phase still waits for
  unsigned phase = 0;
  uint32_t engine_time = 0;
  bool valid = false;
  Clock gathered, done;
  std::vector<Thread*> waiting;
};

// Something that will happen by itself: a copy lands and its bytes are counted, or a thread's earlier copies do and it has arrived.
struct Delivery {
  Mbarrier* barrier;
  std::vector<Copy> copies;
  Thread* arrival = nullptr;
};

struct Mbarriers {
  std::map<const void*, std::unique_ptr<Mbarrier>> at;
  std::vector<Delivery> deliveries;
  unsigned created = 0;
};

// Lets one delivery happen, chosen by the order of the run; false if there is none.
bool deliver_one();
// Ends the case if the thread leaves behind copies that nobody waited for.
void leave_copies(Thread& thread);

// wgmma: what a thread has started, and how many groups of it.
struct WarpGroupOperations {
  std::vector<Wgmma> open;
  std::deque<std::vector<Wgmma>> groups;
  std::map<float*, std::vector<float>> held;  // the accumulators of operations under way
  bool fenced = false;
};
struct WarpGroupMeeting {
  std::vector<Thread*> waiting;
  int pending = 0;
  Site site{};
};

}  // namespace simt
