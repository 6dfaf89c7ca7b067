// The graph in ONNX Runtime.
#pragma once
#include "picture.hpp"

#include <onnxruntime_cxx_api.h>

class Network {
  public:
    explicit Network(const std::string& model) : session_(environment_, model.c_str(), Ort::SessionOptions{}) {}

    float score(Picture picture) {
        const int64_t shape[] = {1, picture.height, picture.width, 3};
        auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
        auto images = Ort::Value::CreateTensor<uint8_t>(memory, picture.pixels.data(), picture.pixels.size(), shape, 4);
        const char *input = "images", *output = "image_score";
        return session_.Run(Ort::RunOptions{}, &input, &images, 1, &output, 1)[0].GetTensorData<float>()[0];
    }

  private:
    Ort::Env environment_{ORT_LOGGING_LEVEL_ERROR, "nnet-edge"};
    Ort::Session session_;
};
