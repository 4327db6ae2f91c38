// Port of moddit/graphs.py.

/// What a package is for.
package enum PackageRole: String, Sendable, CaseIterable {
    /// Text to states.
    case textEncoder = "text_encoder"
    /// What all steps of a picture take, computed once.
    case prepare
    /// One denoising step; several packages run one after the other.
    case transformer
    /// Latents to picture.
    case vaeDecoder = "vae_decoder"
    /// Picture to moments of latents.
    case vaeEncoder = "vae_encoder"

    /// How many may run one after the other.
    var mostPackages: Int { self == .transformer ? Bounds.packages : 1 }
}

/// Where Core ML may compute.
public enum ComputeUnits: String, Sendable, CaseIterable {
    /// Everywhere.
    case all
    /// On the CPU and the GPU.
    case cpuAndGPU
    /// On the CPU and the Neural Engine.
    case cpuAndNeuralEngine
    /// On the CPU.
    case cpuOnly
}

/// How the packages move tokens.
enum RoutingKind: String, Sendable, CaseIterable {
    /// By gathering and scattering rows.
    case rows
    /// By products with matrices of ones and zeros.
    case onehot
}

/// An input or output of a function.
package struct Feature: Sendable, Hashable {
    /// Kinds of numbers.
    package enum DType: String, Sendable, CaseIterable {
        /// 4 bytes each.
        case float32
        /// 2 bytes each.
        case float16
        /// 4 bytes each.
        case int32
    }

    /// Sizes, each at least 1.
    let shape: [Int]
    /// Kind of its numbers.
    let dtype: DType

    /// Numbers that it has.
    let count: Int

    /// Makes a feature that the model has.
    init(_ shape: [Int], _ dtype: DType = .float32) {
        self.shape = shape
        self.dtype = dtype
        count = shape.reduce(1, *)
    }

    /// Reads a feature strictly.
    init(_ field: JSONField) throws(ModditError) {
        let object = try JSONObject(field, ["shape", "dtype"])
        shape = try object["shape"].list(1...Bounds.dimensions) { item throws(ModditError) in
            try item.integer(in: 1...Bounds.featureSize)
        }
        dtype = try choice(object["dtype"])
        var product = 1
        for size in shape {
            product *= size  // both at most 2^30
            guard product <= Bounds.featureSize else {
                throw try object["shape"].outOfRange("at most \(Bounds.featureSize) numbers")
            }
        }
        count = product
    }
}

/// One function of a package.
package struct GraphFunction: Sendable, Hashable {
    /// Its name.
    package let name: String
    /// What it takes, by name.
    let inputs: [String: Feature]
    /// What it gives, by name.
    package let outputs: [String: Feature]

    /// Reads a function strictly.
    init(_ field: JSONField) throws(ModditError) {
        let object = try JSONObject(field, ["name", "inputs", "outputs"])
        name = try object["name"].identifier()
        inputs = try Self.readFeatures(object["inputs"])
        outputs = try Self.readFeatures(object["outputs"])
    }

    /// Makes a function that the model has.
    init(_ name: String, inputs: [String: Feature], outputs: [String: Feature]) {
        self.name = name
        self.inputs = inputs
        self.outputs = outputs
    }

    /// Names the function that prepares the steps of a batch.
    static func prepareName(batch: Int) -> String { "batch\(batch)" }

    /// Reads features; names that a `String` does not tell apart are not the model's, and are refused with it.
    private static func readFeatures(_ field: JSONField) throws(ModditError) -> [String: Feature] {
        var features: [String: Feature] = [:]
        for (name, feature) in try field.dictionary(1...Bounds.features, Feature.init) { features[name.text] = feature }
        return features
    }
}

/// One package of a bundle.
package struct Package: Sendable, Hashable {
    /// Relative to the bundle.
    package let path: String
    /// Its functions.
    package let functions: [GraphFunction]

    /// Reads a package strictly.
    init(_ field: JSONField) throws(ModditError) {
        let object = try JSONObject(field, ["path", "functions"])
        path = try object["path"].relativePath()
        functions = try object["functions"].list(1...Bounds.functions, GraphFunction.init)
    }

    /// Finds a function.
    ///
    /// - Throws: `ModditError.missing` if there is none of this name.
    func function(_ name: String) throws(ModditError) -> GraphFunction {
        guard let function = functions.first(where: { $0.name == name }) else {
            throw .missing("[graphs] \(path): has no function '\(name)', got \(functions.map(\.name))")
        }
        return function
    }
}

/// One function of the transformer's packages, which all have it: the steps that it computes.
package struct StepFunction: Sendable, Hashable {
    /// Its name.
    package let function: String
    /// Height of the picture, pixels.
    package let height: Int
    /// Width of the picture, pixels.
    package let width: Int
    /// 2 runs both halves of classifier-free guidance in one call.
    package let batch: Int
    /// Of timesteps.
    package let regions: [Int]
    /// Tokens that each layer keeps.
    package let capacities: [Int]

    /// The picture's size.
    var size: PictureSize { PictureSize(height: height, width: width) }

    /// Reads a function's use strictly.
    init(_ field: JSONField) throws(ModditError) {
        let object = try JSONObject(field, ["function", "height", "width", "batch", "regions", "capacities"])
        function = try object["function"].identifier()
        height = try object.count("height", most: Bounds.side)
        width = try object.count("width", most: Bounds.side)
        batch = try object.count("batch", most: Bounds.batch)
        regions = try object["regions"].list(1...Bounds.regions) { item throws(ModditError) in
            try item.integer(in: 0...Bounds.regions - 1)
        }
        capacities = try object["capacities"].list(1...Bounds.layers) { item throws(ModditError) in
            try item.integer(in: 1...Bounds.tokens)
        }
    }
}

/// A picture's size.
public struct PictureSize: Sendable, Hashable {
    /// Pixels.
    public let height: Int
    /// Pixels.
    public let width: Int

    /// Makes a size.
    public init(height: Int, width: Int) {
        self.height = height
        self.width = width
    }

    /// How functions for this size are named.
    var functionName: String { "px\(height)x\(width)" }
}

/// All packages of a bundle.
package struct Graphs: Sendable, Hashable {
    /// "iOS" and "macOS" to a version.
    let minimumOS: [String: String]
    /// What the packages suit best.
    package let computeUnits: ComputeUnits
    /// How they move tokens.
    let routing: RoutingKind
    /// Role to packages, which run one after the other.
    package let packages: [PackageRole: [Package]]
    /// What the transformer's functions are for.
    package let stepFunctions: [StepFunction]
    /// The checkpoint's plan; the bundle's own may have fewer rows.
    let trainedPlan: RoutingPlan

    /// Reads the "graphs" object of a manifest strictly.
    ///
    /// - Parameters:
    ///   - field: the object.
    ///   - names: what the packages of the model do.
    /// - Throws: `ModditError.format` for unknown or missing fields, `ModditError.valueRange` for huge numbers.
    init(_ field: JSONField, roles names: [PackageRole]) throws(ModditError) {
        let object = try JSONObject(
            field, ["minimum_os", "compute_units", "routing", "packages", "step_functions", "trained_plan"])
        let systems = try JSONObject(object["minimum_os"], ["iOS", "macOS"])
        minimumOS = ["iOS": try systems["iOS"].version(), "macOS": try systems["macOS"].version()]
        computeUnits = try choice(object["compute_units"])
        routing = try choice(object["routing"])
        let roles = try JSONObject(object["packages"], names.map(\.rawValue))
        var packages: [PackageRole: [Package]] = [:]
        for role in names {
            packages[role] = try roles[role.rawValue].list(1...role.mostPackages, Package.init)
        }
        self.packages = packages
        stepFunctions = try object["step_functions"].list(1...Bounds.functions, StepFunction.init)
        trainedPlan = try RoutingPlan(object["trained_plan"])
    }

    /// Sizes of pictures that the bundle can draw, in the manifest's order.
    var sizes: [PictureSize] {
        unique(stepFunctions.map(\.size))
    }

    /// Batches that the transformer runs in.
    package var batches: [Int] { unique(stepFunctions.map(\.batch)) }

    /// Finds the function for a picture's size, a batch and a region of timesteps.
    ///
    /// - Throws: `ModditError.missing` if the bundle has none.
    func stepFunction(size: PictureSize, batch: Int, region: Int) throws(ModditError) -> StepFunction {
        let found = stepFunctions.first {
            $0.height == size.height && $0.width == size.width && $0.batch == batch && $0.regions.contains(region)
        }
        guard let found else { throw .missing(explain(size: size, batch: batch, region: region)) }
        return found
    }

    func explain(size: PictureSize, batch: Int, region: Int) -> String {
        let known = sizes.map { "\($0.height)x\($0.width)" }.joined(separator: ", ")
        return "[graphs] no function for \(size.height)x\(size.width) pixels, batch \(batch), region \(region); "
            + "the bundle has sizes \(known) and batches \(batches)"
    }

    /// Finds the packages of a role.
    ///
    /// - Throws: `ModditError.missing` if there are none.
    func packages(for role: PackageRole) throws(ModditError) -> [Package] {
        guard let found = packages[role] else { throw noPackage(role) }
        return found
    }

    /// Finds the package of a role that has one.
    ///
    /// - Throws: `ModditError.missing` if there is none.
    func package(for role: PackageRole) throws(ModditError) -> Package {
        guard let found = packages[role]?.first else { throw noPackage(role) }
        return found
    }

    private func noPackage(_ role: PackageRole) -> ModditError {
        .missing("[graphs] the bundle has no package '\(role.rawValue)'; convert the checkpoint again")
    }
}

/// Drops repeated items, keeping the order of the first ones.
package func unique<Item: Hashable>(_ items: [Item]) -> [Item] {
    var seen: Set<Item> = []
    return items.filter { seen.insert($0).inserted }
}
