// Port of moddit/graphs.py: the functions that a model has, with their inputs and outputs.

extension ModelSpec {
    /// The text encoder's function.
    func textFunction(_ name: String) -> GraphFunction {
        GraphFunction(
            name,
            inputs: [
                "input_ids": Feature([1, maxSequenceLength], .int32), "text_mask": Feature([1, maxSequenceLength]),
            ],
            outputs: ["text": Feature([1, maxSequenceLength, textEncoder.width])])
    }

    /// A step function in one of the transformer's packages, which hand on float16.
    func graphFunction(
        of item: StepFunction, isFirst: Bool, isLast: Bool
    ) throws(ModditError) -> GraphFunction {
        let (height, width) = (item.height / vae.downscale, item.width / vae.downscale)
        let tokens = try transformer.tokens(height: height, width: width)
        let latents = Feature([item.batch, transformer.channels, height, width])
        let handedOn = [
            "tokens": Feature([item.batch, tokens, transformer.hiddenSize], .float16),
            "modulation": Feature([1, 6, transformer.hiddenSize], .float16),
            "embedded": Feature([1, 1, transformer.hiddenSize], .float16),
            "text_states": Feature([item.batch, maxSequenceLength, transformer.hiddenSize], .float16),
        ]
        var inputs = isFirst ? [:] : handedOn
        inputs["text_mask"] = Feature([item.batch, maxSequenceLength])
        if isFirst {
            inputs["latents"] = latents
            inputs["timestep"] = Feature([1])
            inputs["text"] = Feature([item.batch, maxSequenceLength, transformer.captionChannels])
        }
        if isFirst, transformer.usesAdditionalConditions {
            inputs["resolution"] = Feature([2])
            inputs["aspect_ratio"] = Feature([1])
        }
        let outputs = Dictionary(uniqueKeysWithValues: handedOn.map { ("\($0)_out", $1) })
        return GraphFunction(item.function, inputs: inputs, outputs: isLast ? ["prediction": latents] : outputs)
    }

    /// The decoder's function for a picture's size.
    func decoderFunction(_ size: PictureSize) -> GraphFunction {
        GraphFunction(
            size.functionName, inputs: ["latents": latents(size, channels: vae.latentChannels)],
            outputs: ["image": image(size)])
    }

    /// The encoder's function for a picture's size: it gives means, and logarithms of variances.
    func encoderFunction(_ size: PictureSize) -> GraphFunction {
        GraphFunction(
            size.functionName, inputs: ["image": image(size)],
            outputs: ["moments": latents(size, channels: 2 * vae.latentChannels)])
    }

    private func image(_ size: PictureSize) -> Feature {
        Feature([1, 3, size.height, size.width])
    }

    private func latents(_ size: PictureSize, channels: Int) -> Feature {
        Feature([1, channels, size.height / vae.downscale, size.width / vae.downscale])
    }
}
