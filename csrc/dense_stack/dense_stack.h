// Chains of small models, each chain's whole loop in one call: stacks of dense layers, their losses and gradients, and
// many Langevin steps on minibatches chosen here. A chain stays on one core, with all it needs in that core's cache.
//
// A layer maps a to activation(W a + b). The weight is a matrix [out, in], or [in, out] where it is transposed, so that
// layers may share one (tied weights). Losses are 1/2 |output - target|^2, or the cross entropy of a class label.
#pragma once
#include <cstdint>

#include "comoments_update/comoments_update.h"
#include "langevin_step/langevin_step.h"

namespace pf {

enum class Activation : int64_t { identity = 0, relu = 1, tanh = 2, gelu = 3 };

struct DenseLayer {
  int64_t in, out;
  int64_t weight, bias;  // where they begin among the model's parameters; bias is -1 where there is none
  int64_t transposed;
  Activation activation;
};

struct DenseStack {
  const DenseLayer* layers;          // [depth]
  const float* base;                 // [params] w*, of the whole model
  const int64_t* coordinate_starts;  // [chains] first of the coordinates that a chain's row holds; -1 where it holds all
  const int64_t* coordinates;        // places among params
  const float* inputs;               // [samples, in]; null where samples are made from presence
  const float* targets;              // [samples, out]; null where there are labels, or made inputs are targets too
  const int64_t* labels;             // [samples]; null for squared error
  const float* weights;              // [samples] rho; null for all 1
  const float* presence;             // [in] how often feature i is there: made where it is asked for, see sparse_features
  int64_t depth, params, samples, data_seed, coordinate_count;
};

// losses[c * stride + j] = loss of sample j on chain c.
struct DenseLosses {
  DenseStack stack;
  const float* rows;          // all chains' rows, one after another
  const int64_t* row_starts;  // [chains + 1]
  float* losses;
  int64_t stride, chains, param_count;
};

// `steps` steps of every chain but those of lr 0, each on the mean of rho times loss over `batch` samples drawn with
// replacement: those that words of (seed, replica, step) choose. What op.step points to is the first step's number.
// Without steps the gradients of the first minibatch are added to op.grads, and nothing moves. With corrects_noise, for
// sgld and at least 2 samples, a step is per_sample_langevin_step's in place of langevin_step's.
struct DenseSteps {
  DenseStack stack;
  LangevinStep op;
  const int64_t* replicas;  // [chains]
  int64_t batch, steps;
  int corrects_noise;
};

// `draws` draws of every chain, each after steps.steps steps: the losses of `evaluated`, and their moments. The
// observables are phi, the mean over samples [phi_begin, phi_end) of loss - reference, and where there are more, loss -
// reference of sample i as observable 1 + i. A chain stops for good at a draw whose losses are not all finite, or whose
// |phi| > limit: its phi and losses are NaN then, and nothing more of it is added. Chains of lr 0 have stopped before.
struct DenseDraws {
  DenseSteps steps;
  DenseStack evaluated;       // the same model on the samples whose losses are taken
  ComomentsUpdate comoments;  // of the first loss_count losses; its losses and observables are made here
  const float* reference;     // [samples] losses at w*
  double* phi;                // [draws, chains]
  float* distance;            // [draws, chains] |w - w*|
  float* losses;              // [draws, chains, loss_count]; null where they are not wanted
  int64_t phi_begin, phi_end, draws;
  double limit;
};

using DenseLossesForm = void (*)(const DenseLosses&, int threads);
using DenseStepsForm = void (*)(const DenseSteps&, int threads);
using DenseDrawsForm = void (*)(const DenseDraws&, int threads);

}  // namespace pf
