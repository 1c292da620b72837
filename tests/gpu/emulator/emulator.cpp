#include <sys/mman.h>
#include <ucontext.h>
#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

// After all others: it takes the word noinline from them.
#include <cuda_runtime.h>

namespace emulated {

dim3 thread, block, grid;

namespace {

constexpr size_t STACK = 256 << 10;

struct Copy {
  void* to;
  const void* from;
  size_t size, zeros;
};

struct Fiber {
  dim3 thread, block;
  Wait waiting = Wait::None;
  bool started = false, done = false;
  ucontext_t start;
  jmp_buf state;
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> groups;
};

struct Warp {
  std::vector<Fiber*> fibers;
  uint64_t board[32][WORDS];
};

struct Block {
  std::vector<std::unique_ptr<Warp>> warps;
};

const std::function<void()>* kernel;
Fiber* current;
Warp* current_warp;
jmp_buf scheduler;

void fiber_main() {
  (*kernel)();
  current->done = true;
  _longjmp(scheduler, 1);
}

void resume(Warp& warp, Fiber& fiber) {
  current = &fiber, current_warp = &warp;
  thread = fiber.thread, block = fiber.block;
  if (_setjmp(scheduler) == 0) {
    if (fiber.started) _longjmp(fiber.state, 1);
    fiber.started = true;
    setcontext(&fiber.start);
  }
}

// Lets those go on who wait for each other and are all there; whether there are any.
bool release(const std::vector<Fiber*>& fibers, Wait waiting) {
  for (const Fiber* f : fibers) {
    if (f->done || f->waiting != waiting) return false;
  }
  for (Fiber* f : fibers) f->waiting = Wait::None;
  return true;
}

template <typename T>
void arrange(std::vector<T>& items) {
  const char* order = std::getenv("FASTPAIR_EMULATED_ORDER");
  if (order == nullptr || std::string(order) == "forward") return;
  if (std::string(order) == "backward") {
    std::reverse(items.begin(), items.end());
  } else {
    std::shuffle(items.begin(), items.end(), std::mt19937(std::atoi(order)));
  }
}

std::vector<Fiber*> fibers_of(const Block& b) {
  std::vector<Fiber*> all;
  for (const auto& warp : b.warps) all.insert(all.end(), warp->fibers.begin(), warp->fibers.end());
  return all;
}

// Until nobody in the block can go on.
void run_block(Block& b) {
  const std::vector<Fiber*> all = fibers_of(b);
  for (bool moved = true; moved;) {
    moved = false;
    for (const auto& warp : b.warps) {
      do {
        for (Fiber* f : warp->fibers) {
          while (!f->done && f->waiting == Wait::None) resume(*warp, *f), moved = true;
        }
      } while (release(warp->fibers, Wait::Warp));
    }
    moved = release(all, Wait::Block) || moved;
  }
}

}  // namespace

void wait(Wait for_whom) {
  current->waiting = for_whom;
  if (_setjmp(current->state) == 0) _longjmp(scheduler, 1);
}

uint64_t (&warp_board())[32][WORDS] { return current_warp->board; }

void copy_later(void* to, const void* from, size_t size, size_t zeros) {
  // Whoever reads the place before the copy arrives reads NaN.
  std::memset(to, 0xff, size);
  current->open.push_back({to, from, size, zeros});
}

void commit_copies() {
  current->groups.push_back(std::move(current->open));
  current->open.clear();
}

void wait_for_copies(size_t groups_left) {
  for (; current->groups.size() > groups_left; current->groups.pop_front()) {
    for (const Copy& copy : current->groups.front()) {
      std::memcpy(copy.to, copy.from, copy.size - copy.zeros);
      std::memset(static_cast<char*>(copy.to) + copy.size - copy.zeros, 0, copy.zeros);
    }
  }
}

bool run(const std::function<void()>& body, dim3 grid_size, dim3 block_size) {
  kernel = &body;
  grid = grid_size;
  const size_t count = size_t(grid_size.x) * block_size.x;
  void* stacks =
      mmap(nullptr, count * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stacks == MAP_FAILED) return false;
  std::vector<std::unique_ptr<Fiber>> fibers(count);
  std::vector<std::unique_ptr<Block>> blocks;
  for (unsigned i = 0; i < grid_size.x; ++i) {
    auto& b = *blocks.emplace_back(std::make_unique<Block>());
    for (unsigned j = 0; j < block_size.x; ++j) {
      if (j % 32 == 0) b.warps.push_back(std::make_unique<Warp>());
      auto& f = fibers[i * block_size.x + j] = std::make_unique<Fiber>();
      f->thread = dim3(j), f->block = dim3(i);
      getcontext(&f->start);
      f->start.uc_stack = {static_cast<char*>(stacks) + (size_t(i) * block_size.x + j) * STACK, 0, STACK};
      f->start.uc_link = nullptr;
      makecontext(&f->start, fiber_main, 0);
      b.warps.back()->fibers.push_back(f.get());
    }
    for (auto& warp : b.warps) arrange(warp->fibers);
    arrange(b.warps);
  }
  arrange(blocks);
  std::vector<Fiber*> all;
  for (const auto& f : fibers) all.push_back(f.get());
  do {
    for (const auto& b : blocks) run_block(*b);
  } while (release(all, Wait::Grid));
  munmap(stacks, count * STACK);
  for (const Fiber* f : all) {
    if (!f->done) {
      std::fprintf(stderr, "thread %u of block %u waits for others that never come\n", f->thread.x, f->block.x);
      return false;
    }
  }
  return true;
}

}  // namespace emulated
