g++ -DPF_ISA=avx2 -I/work/h-offset/csrc -O3 -ffp-contract=off -fno-math-errno -fno-trapping-math -Wno-psabi -mavx2 -mfma -mtune=haswell -fopenmp -std=gnu++17 mb.cpp -o mb && ./mb && ./mb
