// The graph in OpenVINO, in FP32: by itself it would choose BF16 on processors that have it.
#pragma once
#include "picture.hpp"

#include <openvino/openvino.hpp>

class Network {
  public:
    explicit Network(const std::string& model)
        : request_(ov::Core().compile_model(model, "CPU", ov::hint::inference_precision(ov::element::f32)).create_infer_request()) {}

    float score(Picture picture) {
        const ov::Shape shape{1, size_t(picture.height), size_t(picture.width), 3};
        request_.set_tensor("images", ov::Tensor(ov::element::u8, shape, picture.pixels.data()));
        request_.infer();
        return request_.get_tensor("image_score").data<float>()[0];
    }

  private:
    ov::InferRequest request_;
};
