/// Runs functions of a bundle's packages: Core ML, or a stand-in in tests.
package protocol PackageRunning: Sendable {
    /// Runs a function.
    ///
    /// - Parameters:
    ///   - package: one of the bundle's.
    ///   - function: one of the package's.
    ///   - inputs: all that the function takes, with the shapes and kinds that it wants.
    /// - Returns: all that the function gives, by name.
    func run(_ package: Package, function: GraphFunction, inputs: [String: Tensor]) async throws -> [String: Tensor]

    /// Gives the memory of a package back.
    func unload(_ package: Package) async
}

extension PackageRunning {
    /// Runs a function with the inputs that it takes, after checking them.
    ///
    /// - Throws: `ModditError.missing` for an input or output that is not there, `ModditError.shape` for one of another
    ///   shape or kind than the manifest says, and what the runtime throws.
    func call(
        _ package: Package, _ function: GraphFunction, _ values: [String: Tensor]
    ) async throws -> [String: Tensor] {
        let place = "\(package.path), function \(function.name)"
        let inputs = try Self.select(function.inputs, of: values, place: place)
        let outputs = try await run(package, function: function, inputs: inputs)
        return try Self.select(function.outputs, of: outputs, place: place)
    }

    private static func select(
        _ features: [String: Feature], of values: [String: Tensor], place: String
    ) throws(ModditError) -> [String: Tensor] {
        var selected: [String: Tensor] = [:]
        for (name, feature) in features {
            guard let value = values[name] else {
                throw .missing("[graphs] \(place): no value for '\(name)', got \(values.keys.sorted())")
            }
            guard value.shape == feature.shape, value.numbers.dtype == feature.dtype else {
                throw .shape(
                    "[graphs] \(place): '\(name)' is \(value.numbers.dtype.rawValue) \(value.shape), want "
                        + "\(feature.dtype.rawValue) \(feature.shape)")
            }
            selected[name] = value
        }
        return selected
    }
}

extension Dictionary where Key == String, Value == Tensor {
    /// A value of single precision.
    func floats(_ name: String) throws(ModditError) -> [Float] {
        guard let value = self[name] else {
            throw .missing("[graphs] no output '\(name)', got \(keys.sorted()); convert the checkpoint again")
        }
        return try value.floats()
    }
}
