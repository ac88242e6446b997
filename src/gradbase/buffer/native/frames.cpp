// Lets kernels that allocate their own results put them where the plan wants them.
//
// The allocator below stands before torch's CPU allocator. It passes every request on unchanged, with two
// exceptions, both per thread:
//   armed (gb_expect):         the requests named by the plan are answered with addresses in the arena;
//   recording (gb_record_...): every request is passed on and written down, and so is when it is freed.
// Requests are counted from the moment of arming or recording; requests for no bytes are not counted.
//
// What other users of the allocator rely on, and how it is kept:
//   - context and data of every DataPtr are the same pointer, so raw_allocate works (oneDNN's scratch uses it);
//   - raw_deleter() is always `release`, which does for any pointer what its own deleter does: nothing for an
//     address in an adopted arena, the base allocator's deleter for everything else;
//   - blocks passed on keep the base allocator's own deleter, so profilers and memory reports see them as
//     before. A frame is not reported: it is no allocation.

#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

namespace {

constexpr uint8_t kPriority = 1;  // torch registers its own allocator with 0

// A planned request: its number, and the frame that answers it if the size is as planned.
struct Frame {
  int64_t call_index;
  void* address;
  int64_t nbytes;
};

constexpr int64_t kMostFrames = 512;

// The next kernel's frames in ascending order of call_index. Laid out by Python, copied by gb_expect.
struct Expectation {
  int64_t count;
  Frame frames[kMostFrames];
};

// One recorded request. `born` and `freed` number the events of a recording from 1; freed is 0 while it lives.
struct Entry {
  void* address;
  int64_t nbytes;
  int64_t born;
  int64_t freed;
};

struct Recording {
  std::vector<Entry> entries;
  int64_t events = 0;
};

struct Place {
  Recording* recording;
  size_t entry;
};

// Behind one mutex, because blocks may be freed on any thread. Never destroyed: tensors may outlive main().
struct Shared {
  std::mutex mutex;
  std::unordered_map<void*, Place> tracked;  // blocks of open recordings only
  std::vector<std::pair<uintptr_t, size_t>> arenas;
};

Shared& shared() {
  static Shared* const instance = new Shared;
  return *instance;
}

// So that `release` takes the lock only when there is something to look up.
std::atomic<int64_t> open_recordings{0};
std::atomic<int64_t> adopted_arenas{0};

c10::Allocator* base = nullptr;
c10::DeleterFnPtr base_deleter = nullptr;

// Trivial to destroy, because tensors are freed while threads end.
struct ThreadState {
  Frame frames[kMostFrames];
  int64_t count;     // 0: not armed
  int64_t position;  // the next of `frames`
  int64_t request;
  int64_t served;
  Recording* recording;
};

thread_local ThreadState state;  // zero

void note_freed(void* data) {
  auto& all = shared();
  const std::lock_guard<std::mutex> guard(all.mutex);
  const auto found = all.tracked.find(data);
  if (found == all.tracked.end()) return;
  Recording& recording = *found->second.recording;
  recording.entries[found->second.entry].freed = ++recording.events;
  all.tracked.erase(found);
}

bool in_arena(const void* data) {
  auto& all = shared();
  const std::lock_guard<std::mutex> guard(all.mutex);
  const auto address = reinterpret_cast<uintptr_t>(data);
  for (const auto& [start, nbytes] : all.arenas)
    if (address - start < nbytes) return true;
  return false;
}

// The deleter of recorded blocks, and of raw allocations. The note comes first: once the base allocator has
// the block back, another thread may be given the same address.
void release(void* data) {
  if (open_recordings.load(std::memory_order_acquire) > 0) note_freed(data);
  if (adopted_arenas.load(std::memory_order_acquire) > 0 && in_arena(data)) return;
  base_deleter(data);
}

void keep(void*) {}  // a frame belongs to the arena

c10::DataPtr cpu_pointer(void* data, c10::DeleterFnPtr deleter) {
  return {data, data, deleter, c10::Device(c10::DeviceType::CPU)};
}

c10::DataPtr record(size_t nbytes) {
  void* const data = base->raw_allocate(nbytes);
  auto& all = shared();
  const std::lock_guard<std::mutex> guard(all.mutex);
  Recording& recording = *state.recording;
  all.tracked[data] = {&recording, recording.entries.size()};
  recording.entries.push_back({data, static_cast<int64_t>(nbytes), ++recording.events, 0});
  return cpu_pointer(data, &release);
}

// The planned address for this request, or null. Goes quiet by itself after the last planned request.
void* planned(size_t nbytes) {
  const Frame& frame = state.frames[state.position];
  if (state.request++ != frame.call_index) return nullptr;
  if (++state.position == state.count) state.count = 0;
  if (static_cast<int64_t>(nbytes) != frame.nbytes) return nullptr;
  ++state.served;
  return frame.address;
}

class FrameAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t nbytes) override {
    if (nbytes > 0) {
      if (state.count > 0) {
        if (void* const address = planned(nbytes)) return cpu_pointer(address, &keep);
      } else if (state.recording != nullptr) {
        return record(nbytes);
      }
    }
    return base->allocate(nbytes);
  }

  bool is_simple_data_ptr(const c10::DataPtr& pointer) const override {
    return pointer.get() == pointer.get_context();
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release; }

  void copy_data(void* target, const void* source, size_t nbytes) const override {
    default_copy_data(target, source, nbytes);
  }
};

}  // namespace

extern "C" {

// 0: installed (now or before). 1: the base allocator cannot be wrapped. 2: another allocator ranks higher.
int gb_install() {
  static FrameAllocator* const ours = new FrameAllocator;
  if (base != nullptr) return 0;
  c10::Allocator* const found = c10::GetCPUAllocator();
  if (found == nullptr || found->raw_deleter() == nullptr) return 1;
  base_deleter = found->raw_deleter();
  base = found;
  c10::SetCPUAllocator(ours, kPriority);
  if (c10::GetCPUAllocator() == ours) return 0;
  base = nullptr;
  return 2;
}

void gb_adopt(void* address, size_t nbytes) {
  auto& all = shared();
  const std::lock_guard<std::mutex> guard(all.mutex);
  all.arenas.emplace_back(reinterpret_cast<uintptr_t>(address), nbytes);
  adopted_arenas.fetch_add(1, std::memory_order_release);
}

void gb_forget(void* address) {
  auto& all = shared();
  const std::lock_guard<std::mutex> guard(all.mutex);
  for (auto arena = all.arenas.begin(); arena != all.arenas.end(); ++arena) {
    if (arena->first != reinterpret_cast<uintptr_t>(address)) continue;
    all.arenas.erase(arena);
    adopted_arenas.fetch_sub(1, std::memory_order_release);
    return;
  }
}

// At most kMostFrames frames; Python sees to it.
void gb_expect(const Expectation* expected) {
  std::copy_n(expected->frames, expected->count, state.frames);
  state.count = expected->count;
  state.position = 0;
  state.request = 0;
  state.served = 0;
}

int64_t gb_disarm() {
  state.count = 0;
  return state.served;
}

// 0: this thread records already.
int gb_record_begin() {
  if (state.recording != nullptr) return 0;
  state.count = 0;
  state.recording = new Recording;
  open_recordings.fetch_add(1, std::memory_order_release);
  return 1;
}

// Stops recording and returns how many requests there were; their blocks are ordinary ones from here on.
int64_t gb_record_end(void** recording) {
  auto& all = shared();
  const std::lock_guard<std::mutex> guard(all.mutex);
  Recording* const ended = std::exchange(state.recording, nullptr);
  for (const Entry& entry : ended->entries)
    if (entry.freed == 0) all.tracked.erase(entry.address);
  open_recordings.fetch_sub(1, std::memory_order_release);
  *recording = ended;
  return static_cast<int64_t>(ended->entries.size());
}

// Copies the entries out (four int64 each: address, nbytes, born, freed) and deletes the recording.
void gb_record_take(void* recording, Entry* entries) {
  Recording* const ended = static_cast<Recording*>(recording);
  for (const Entry& entry : ended->entries) *entries++ = entry;
  delete ended;
}

}  // extern "C"
