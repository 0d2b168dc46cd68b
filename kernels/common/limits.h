// Numbers on which the kernels and Rust agree: the build makes src/limits.rs of each line `constexpr int NAME = VALUE;`.
#pragma once

// Of sequences of which fewer keys are seen, the horizon leaves out nothing: there is little to leave out.
constexpr int MIN_HORIZON_KEYS = 2048;

// The most rows of a sequence, of queries or of keys: the sum of two such numbers is still an int.
constexpr int MAX_SEQLEN = 1073741824;
