// The threads, warps, blocks and the one cluster of them that runs at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "async.h"
#include "fibre.h"
#include "race.h"
#include "simt/runtime.h"

namespace simt {

enum class Order { forward, reversed, random };
enum class State { ready, waiting, done };

struct Warp;
struct Block;

// What a thread waits for, for reports.
struct Wait {
  const char* what = "";
  Site site{};
  unsigned mask = 0;  // of a collective
  const void* barrier = nullptr;
  unsigned parity = 0;  // of an mbarrier
  int id = 0;           // of a named barrier
};

struct Thread {
  Fibre* fibre;
  Block* block;
  Warp* warp;
  uint3 index;
  unsigned number;  // in its block
  unsigned lane;
  unsigned identity;  // in the cluster, for the race detector
  State state = State::ready;
  Wait wait;
  Clock clock;
  bool fenced = false;  // has come to a __threadfence
  ThreadCopies copies;
  WarpGroupOperations matrices;
};

// A collective that some lanes have come to.
struct OpenCollective {
  Collective kind;
  unsigned mask, arrived;
  Site site;
  Compute compute;
  void* operand[32];
};

struct Warp {
  Block* block;
  std::vector<Thread*> lanes;
  unsigned alive;  // a bit for each lane that has not left the kernel
  std::vector<OpenCollective> open;
};

// A barrier of threads of a block or of the cluster. Clocks of those that came are gathered for those that wait.
struct Meeting {
  unsigned arrived = 0, expected = 0;
  Site site{};
  std::vector<Thread*> waiting;
  Clock gathered;
};

struct Block {
  uint3 index;
  unsigned rank;  // in its cluster
  unsigned thread_count, alive;
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<std::unique_ptr<Warp>> warps;
  Meeting barriers[16];
  std::vector<WarpGroupMeeting> warp_groups;
  std::vector<bool> declared;  // which static shared arrays this block has come to
};

struct Cluster {
  std::vector<std::unique_ptr<Block>> blocks;
  unsigned thread_count = 0, alive = 0;
  unsigned barrier_arrived = 0;
  Clock barrier_gathered, barrier_done;
  unsigned barrier_phase = 0;
  std::vector<unsigned> arrived_phase;  // by identity: how many cluster barriers a thread has arrived at
  std::vector<Thread*> barrier_waiting;
  Mbarriers mbarriers;
};

// One static shared declaration of the kernel that runs.
struct StaticDeclaration {
  const char* function;
  int line;
  size_t offset, bytes;
};

struct Simulation {
  Order order = Order::forward;
  std::mt19937_64 random;
  const Launch* kernel = nullptr;
  std::string kernel_name;
  Cluster* cluster = nullptr;
  Thread* current = nullptr;
  std::vector<StaticDeclaration> declarations;
  std::vector<std::string> launched;  // names of all kernels so far

  bool chance(unsigned one_in) { return order == Order::random && random() % one_in == 0; }
};
Simulation& simulation();

// The thread that runs; ends the case if none does.
Thread& current(const char* what, Site site);

// Puts the current thread to sleep until wake.
void wait(const Wait& wait);
void wake(Thread& thread);

// What a thread's leaving means for those that wait.
void leave_collectives(Thread& thread);
void leave_barriers(Thread& thread);

// The table of who waits for what, for reports.
std::string waiting_threads();

}  // namespace simt
