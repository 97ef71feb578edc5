// The optimizer updates of one selected scalar, in float32, once for host and device.
//
// They follow torch.optim's Adam, AdamW and SGD operation by operation; scalars that torch computes in Python
// (step size, bias corrections, decay) arrive rounded from double.
#pragma once

#include "score.h"

namespace selective {

struct AdamCoefficients {
  float one_minus_beta1;
  float beta2;
  float one_minus_beta2;
  float eps;
  float keep;  // 1 - lr * weight_decay for decoupled decay (AdamW), else 1
  float l2;    // weight decay in the gradient (Adam), else 0
};

struct SgdCoefficients {
  float lr;
  float momentum;
  float one_minus_dampening;
  float weight_decay;
  bool nesterov;
};

namespace {

// step_size = lr / (1 - beta1^t) and correction2 = sqrt(1 - beta2^t), t counted per tensor or per entry (C6).
SELECTIVE_HD inline void adam_update(float grad, float& exp_avg, float& exp_avg_sq, float& theta, float step_size,
                                     float correction2, const AdamCoefficients& c) {
  grad = grad + c.l2 * theta;
  theta = theta * c.keep;
  exp_avg = exp_avg + c.one_minus_beta1 * (grad - exp_avg);
  exp_avg_sq = exp_avg_sq * c.beta2 + c.one_minus_beta2 * grad * grad;
  const float denominator = square_root(exp_avg_sq) / correction2 + c.eps;
  theta = theta - step_size * (exp_avg / denominator);
}

// `first`: the buffer starts as the gradient itself, without dampening, as in torch.
SELECTIVE_HD inline void sgd_update(float grad, float& buffer, float& theta, bool first, const SgdCoefficients& c) {
  grad = grad + c.weight_decay * theta;
  const float started = c.momentum * buffer + c.one_minus_dampening * grad;
  buffer = first ? grad : started;
  const float direction = c.nesterov ? grad + c.momentum * buffer : buffer;
  theta = theta - c.lr * direction;
}

SELECTIVE_HD inline void sgd_update_plain(float grad, float& theta, const SgdCoefficients& c) {
  grad = grad + c.weight_decay * theta;
  theta = theta - c.lr * grad;
}

}  // namespace
}  // namespace selective
