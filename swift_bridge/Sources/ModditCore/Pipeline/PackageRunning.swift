/// Runs functions of a bundle's packages: Core ML, or a stand-in in tests.
package protocol PackageRunning: Sendable {
    /// Runs a function.
    ///
    /// - Parameters:
    ///   - package: one of the bundle's.
    ///   - function: one of the package's.
    ///   - inputs: all that the function takes, with the shapes and kinds that it wants.
    /// - Returns: all that the function gives, by name; the runtime's own arrays may go into another function as they
    ///   are.
    func run(
        _ package: Package, function: GraphFunction, inputs: [String: any FeatureValue]
    ) async throws -> [String: any FeatureValue]

    /// Gives the memory of a package back.
    func unload(_ package: Package) async
}

extension PackageRunning {
    /// Runs a function with the inputs that it takes, after checking them.
    ///
    /// - Throws: `ModditError.missing` for an input or output that is not there, `ModditError.shape` for one of another
    ///   shape or kind than the manifest says, and what the runtime throws.
    func call(
        _ package: Package, _ function: GraphFunction, _ values: [String: any FeatureValue]
    ) async throws -> [String: any FeatureValue] {
        let place = "\(package.path), function \(function.name)"
        let inputs = try Self.select(function.inputs, of: values, place: place)
        let outputs = try await run(package, function: function, inputs: inputs)
        return try Self.select(function.outputs, of: outputs, place: place)
    }

    private static func select(
        _ features: [String: Feature], of values: [String: any FeatureValue], place: String
    ) throws(ModditError) -> [String: any FeatureValue] {
        var selected: [String: any FeatureValue] = [:]
        for (name, feature) in features {
            guard let value = values[name] else {
                throw .missing("[graphs] \(place): no value for '\(name)', got \(values.keys.sorted())")
            }
            guard value.shape == feature.shape, value.dtype == feature.dtype else {
                throw .shape(
                    "[graphs] \(place): '\(name)' is \(value.dtype.rawValue) \(value.shape), want "
                        + "\(feature.dtype.rawValue) \(feature.shape)")
            }
            selected[name] = value
        }
        return selected
    }
}

extension Dictionary where Key == String, Value == any FeatureValue {
    /// A value of single precision.
    func floats(_ name: String) throws -> [Float] {
        guard let value = self[name] else {
            throw ModditError.missing("[graphs] no output '\(name)', got \(keys.sorted()); convert the checkpoint again")
        }
        return try value.tensor().floats()
    }
}
