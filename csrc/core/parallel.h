// A loop whose passes threads share. OpenMP, or plain threads where a race detector must see every synchronisation.
#pragma once
#include <atomic>
#include <cstdint>

#if defined(PF_PLAIN_THREADS)
#include <thread>
#include <vector>
#endif

namespace pf {

// Calls body(i) once for each i in [0, count), in no order; passes must not touch what another writes.
template <class Body>
void parallel_for(int64_t count, int threads, const Body& body) {
#if defined(PF_PLAIN_THREADS)
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    for (int64_t i = next++; i < count; i = next++) body(i);
  };
  std::vector<std::thread> team;
  for (int thread = 1; thread < threads; ++thread) team.emplace_back(work);
  work();
  for (std::thread& each : team) each.join();
#else
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t i = 0; i < count; ++i) body(i);
#endif
}

// The same with body(i, worker): no two passes with the same worker, below `threads`, run at once.
template <class Body>
void parallel_for_workers(int64_t count, int threads, const Body& body) {
  std::atomic<int64_t> next{0};
  parallel_for(threads, threads, [&](int64_t worker) {
    for (int64_t i = next++; i < count; i = next++) body(i, worker);
  });
}

}  // namespace pf
