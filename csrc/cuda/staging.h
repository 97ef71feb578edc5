// Small tables on their way from the host to a device, without waiting, and back, which waits.
#pragma once

#include <initializer_list>

#include "launch.cuh"

namespace selective {

// Copies `bytes` bytes to device memory, in the order of the place's stream; `source` may change at once. The place's
// device is the current one.
void send(const Place& place, void* target, const void* source, std::size_t bytes);

// Copies `bytes` bytes of device memory to the host.
struct Fetching {
  void* target;
  const void* source;
  std::size_t bytes;
};

// Makes these copies in the order of the place's stream, and waits for them. The place's device is the current one.
void receive(const Place& place, std::initializer_list<Fetching> copies);

// Hands out parts of a place's room, one after the other, for tables and intermediate results.
class Room {
 public:
  explicit Room(const Place& place) : place_(place) {}
  // Aligned to 16 bytes. Throws if the room that Python gave is too small.
  template <class T>
  T* take(std::int64_t items) {
    return static_cast<T*>(take_bytes(items * static_cast<std::int64_t>(sizeof(T))));
  }
  // So many bytes as the room of another call in the same place.
  Place part(std::int64_t bytes) { return {place_.device, place_.stream, take<char>(bytes), bytes}; }
  // All that is left.
  Place rest() { return part((place_.size - used_) / 16 * 16); }

 private:
  void* take_bytes(std::int64_t bytes) {
    const std::int64_t begin = used_;
    used_ += (bytes + 15) / 16 * 16;
    if (used_ > place_.size) {
      throw std::invalid_argument("room: expected " + std::to_string(used_) + " bytes or more, got " +
                                  std::to_string(place_.size));
    }
    return place_.room + begin;
  }
  const Place place_;
  std::int64_t used_ = 0;
};

}  // namespace selective
