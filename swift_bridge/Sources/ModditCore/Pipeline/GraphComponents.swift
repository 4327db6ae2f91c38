/// A text encoder that is a package.
struct GraphTextEncoder: TextEncoding {
    private let package: Package
    private let function: GraphFunction
    private let runner: any PackageRunning

    /// Finds the package.
    ///
    /// - Throws: `ModditError.missing` if the bundle has none.
    init(_ graphs: Graphs, runner: any PackageRunning) throws(ModditError) {
        package = try graphs.package(for: .textEncoder)
        guard let function = package.functions.first else {
            throw .missing("[graphs] \(package.path): has no function; convert the checkpoint again")
        }
        self.function = function
        self.runner = runner
    }

    /// Encodes one text.
    func encode(_ tokens: UnigramTokenizer.Padded) async throws -> [Float] {
        let shape = [1, tokens.ids.count]
        let inputs = [
            "input_ids": try Tensor(.int32(tokens.ids), shape: shape),
            "text_mask": try Tensor(tokens.mask.map { Float($0) }, shape: shape),
        ]
        return try await runner.call(package, function, inputs).floats("text")
    }

    /// Gives the package's memory back.
    func unload() async { await runner.unload(package) }
}

/// The package of what is computed once a picture; of a model without one, rows are told as they are.
struct GraphPreparation: Preparing {
    private let package: Package?
    private let runner: any PackageRunning

    /// Finds the package.
    init(_ graphs: Graphs, runner: any PackageRunning) {
        package = graphs.packages[.prepare]?.first
        self.runner = runner
    }

    /// Prepares the calls of some rows.
    func prepare(_ rows: [Condition]) async throws -> [String: any FeatureValue] {
        let values: [String: any FeatureValue] = try Condition.batch(rows)
        guard let package else { return values }
        let function = try package.function(GraphFunction.prepareName(batch: rows.count))
        let outputs = try await runner.call(package, function, values)
        return values.filter { function.inputs[$0.key] == nil }.merging(outputs) { $1 }
    }

    /// Gives the package's memory back.
    func unload() async {
        if let package { await runner.unload(package) }
    }
}

/// A transformer that is one package, or several which run one after the other.
struct GraphDenoiser: Denoiser {
    /// Ends the name of an output that is the next package's input.
    private static let handedOn = "_out"
    private let packages: [Package]
    private let spec: ModelSpec
    private let runner: any PackageRunning

    /// Finds the packages.
    ///
    /// - Throws: `ModditError.missing` if the bundle has none.
    init(_ graphs: Graphs, spec: ModelSpec, runner: any PackageRunning) throws(ModditError) {
        packages = try graphs.packages(for: .transformer)
        self.spec = spec
        self.runner = runner
    }

    /// Predicts the noise, or the velocity; each package takes what it needs of what is known of the step.
    func predict(_ input: DenoiserInput) async throws -> [Float] {
        var values = try inputs(input)
        for package in packages {
            let outputs = try await runner.call(package, package.function(input.function.function), values)
            for (name, value) in outputs {
                values[name.hasSuffix(Self.handedOn) ? String(name.dropLast(Self.handedOn.count)) : name] = value
            }
        }
        return try values.floats("prediction")
    }

    /// Gives the packages' memory back.
    func unload() async {
        for package in packages { await runner.unload(package) }
    }

    /// All that a step can be told.
    private func inputs(_ input: DenoiserInput) throws(ModditError) -> [String: any FeatureValue] {
        let (batch, scale) = (input.function.batch, spec.vae.downscale)
        let (height, width) = (input.function.height, input.function.width)
        let latents = [batch, spec.transformer.dimensions.channels, height / scale, width / scale]
        var values = input.told
        values["latents"] = try Tensor(input.latents, shape: latents)
        values["timestep"] = try Tensor([input.timestep], shape: [1])
        values["resolution"] = try Tensor([Float(height), Float(width)], shape: [2])
        values["aspect_ratio"] = try Tensor([Float(Double(height) / Double(width))], shape: [1])
        return values
    }
}

/// An encoder of pictures that is a package; it is loaded when it is first called, for an edit.
struct GraphEncoder: ImageEncoding {
    private let package: Package
    private let runner: any PackageRunning

    /// Finds the package.
    ///
    /// - Throws: `ModditError.missing` if the bundle has none.
    init(_ graphs: Graphs, runner: any PackageRunning) throws(ModditError) {
        package = try graphs.package(for: .vaeEncoder)
        self.runner = runner
    }

    /// Encodes a picture.
    func encode(_ planes: [Float], size: PictureSize) async throws -> [Float] {
        let shape = [1, 3, size.height, size.width]
        let function = try package.function(takes: "image", shape: shape)
        return try await runner.call(package, function, ["image": Tensor(planes, shape: shape)]).floats("moments")
    }

    /// Gives the package's memory back.
    func unload() async { await runner.unload(package) }
}

/// A decoder that is a package.
struct GraphDecoder: LatentDecoding {
    private let package: Package
    private let spec: VAESpec
    private let runner: any PackageRunning

    /// Finds the package.
    ///
    /// - Throws: `ModditError.missing` if the bundle has none.
    init(_ graphs: Graphs, spec: VAESpec, runner: any PackageRunning) throws(ModditError) {
        package = try graphs.package(for: .vaeDecoder)
        self.spec = spec
        self.runner = runner
    }

    /// Decodes latents.
    func decode(_ latents: [Float], size: PictureSize) async throws -> [Float] {
        let shape = [1, spec.latentChannels, size.height / spec.downscale, size.width / spec.downscale]
        let function = try package.function(takes: "latents", shape: shape)
        return try await runner.call(package, function, ["latents": Tensor(latents, shape: shape)]).floats("image")
    }

    /// Gives the package's memory back.
    func unload() async { await runner.unload(package) }
}

extension Package {
    /// Finds the function for an input's shape.
    func function(takes name: String, shape: [Int]) throws(ModditError) -> GraphFunction {
        guard let function = functions.first(where: { $0.inputs[name]?.shape == shape }) else {
            throw .missing(
                "[graphs] \(path): no function takes '\(name)' of shape \(shape), got "
                    + "\(functions.compactMap { $0.inputs[name]?.shape })")
        }
        return function
    }
}
