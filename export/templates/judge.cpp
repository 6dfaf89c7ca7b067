// Judges JPEGs by the graph beside this file, one line of JSON each: judge MODEL PICTURE...
#include "contract.hpp"  // sizes and threshold, written by nnet-edge export-model
#include "network.hpp"
#include "picture.hpp"

#include <cmath>
#include <cstdio>

// The part of the picture that the bundle judges, at the size of the graph's input, on grey where it has a letterbox.
static Picture to_input(const Picture& picture) {
    const auto whole = [](double value) { return static_cast<int>(std::nearbyint(value)); };
    int left = std::min(whole(CROP[0] * picture.width), picture.width - 1);
    int top = std::min(whole(CROP[1] * picture.height), picture.height - 1);
    int width = std::max(1, whole((CROP[0] + CROP[2]) * picture.width) - left);
    int height = std::max(1, whole((CROP[1] + CROP[3]) * picture.height) - top);
    const int down = std::max(1, whole(SHARES[0] * height)), across = std::max(1, whole(SHARES[1] * width));
    top += (height - down) / 2, left += (width - across) / 2;
    const Picture part = resized(cut(picture, top, left, down, across), WINDOW[2], WINDOW[3]);
    Picture input{HEIGHT, WIDTH, std::vector<uint8_t>(3 * HEIGHT * WIDTH, GREY)};
    for (int row = 0; row < part.height; ++row)
        std::copy_n(&part.pixels[3 * row * part.width], 3 * part.width,
                    &input.pixels[3 * ((row + WINDOW[0]) * WIDTH + WINDOW[1])]);
    return input;
}

int main(int count, char** words) {
    if (count < 3) return std::fprintf(stderr, "usage: judge MODEL PICTURE.jpg...\n"), 2;
    int failed = 0;
    try {
        Network network(words[1]);
        for (int number = 2; number < count; ++number) try {
                const float score = network.score(to_input(read_jpeg(words[number])));
                if (!std::isfinite(score)) throw std::runtime_error("its score is not finite, so it has no verdict");
                std::printf("{\"number\": %d, \"score\": %.9g, \"relative_score\": %.9g, \"verdict\": \"%s\"}\n", number - 2,
                            score, score / THRESHOLD, score > THRESHOLD ? "anomalous" : "good");
            } catch (const std::exception& error) {
                std::fprintf(stderr, "judge: %s: %s\n", words[number], error.what()), failed = 1;
            }
    } catch (const std::exception& error) {
        return std::fprintf(stderr, "judge: %s: %s\n", words[1], error.what()), 1;
    }
    return failed;
}
