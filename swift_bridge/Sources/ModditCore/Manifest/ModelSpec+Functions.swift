// Port of moddit/graphs.py: the functions that a model has, with their inputs and outputs.

/// What a step of a transformer is told, and what its packages hand on, by the names of `ModelSpec.features`.
struct StepFeatures: Sendable, Hashable {
    /// Told at the start only, beside the latents.
    let first: [String]
    /// Told at the start, and to every package.
    let always: [String]
    /// Handed from each package to the next, where the model is divided into several.
    let handed: [String]
    /// Told once a picture, before its steps.
    var told: [String] = []
    /// What is made of that, and told to every package.
    var prepared: [String] = []
}

extension PixArtSpec {
    var features: StepFeatures {
        let size = usesAdditionalConditions ? ["resolution", "aspect_ratio"] : []
        return StepFeatures(
            first: ["timestep"] + size, always: ["text_mask"], handed: ["tokens", "modulation", "embedded"],
            told: ["text"], prepared: ["text_keys", "text_values"])
    }
}

extension DiTSpec {
    var features: StepFeatures {
        StepFeatures(first: [], always: ["timestep", "labels"], handed: ["tokens"])
    }
}

extension ModelSpec {
    /// All that a step can be told, hand on and give, by name, whatever the architecture.
    private func features(_ item: StepFunction) throws(ModditError) -> [String: Feature] {
        let (height, width) = (item.height / vae.downscale, item.width / vae.downscale)
        let sizes = transformer.dimensions
        let tokens = try sizes.tokens(height: height, width: width)
        let latents = Feature([item.batch, sizes.channels, height, width])
        let known = [
            "latents": latents,
            "timestep": Feature([1]),
            "resolution": Feature([2]),
            "aspect_ratio": Feature([1]),
            "tokens": Feature([item.batch, tokens, sizes.hiddenSize], .float16),
            "modulation": Feature([1, 6, sizes.hiddenSize], .float16),
            "embedded": Feature([1, 1, sizes.hiddenSize], .float16),
            "prediction": latents,
        ]
        return known.merging(conditioning.features(batch: item.batch)) { $1 }.merging(prepared(item.batch)) { $1 }
    }

    /// What can be prepared for a batch: for all blocks, one batch behind the other.
    private func prepared(_ batch: Int) -> [String: Feature] {
        let sizes = transformer.dimensions
        let shape = [layers * batch, sizes.heads, textTokens, sizes.hiddenSize / sizes.heads]
        return ["text_keys": Feature(shape, .float16), "text_values": Feature(shape, .float16)]
    }

    /// The function that prepares the steps of a batch.
    func prepareFunction(batch: Int) -> GraphFunction {
        let fed = transformer.features
        return GraphFunction(
            GraphFunction.prepareName(batch: batch),
            inputs: conditioning.features(batch: batch).filter { fed.told.contains($0.key) },
            outputs: prepared(batch).filter { fed.prepared.contains($0.key) })
    }

    /// A step function in one of the transformer's packages, which hand on float16.
    func graphFunction(
        of item: StepFunction, isFirst: Bool, isLast: Bool
    ) throws(ModditError) -> GraphFunction {
        let (known, fed) = (try features(item), transformer.features)
        let inputs = Set((isFirst ? ["latents"] + fed.first : fed.handed) + fed.always + fed.prepared)
        let handed = fed.handed.compactMap { name in known[name].map { ("\(name)_out", $0) } }
        return GraphFunction(
            item.function, inputs: known.filter { inputs.contains($0.key) },
            outputs: isLast
                ? known.filter { $0.key == "prediction" } : Dictionary(uniqueKeysWithValues: handed))
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
