/// A function of a bundle that a benchmark measures on some compute units.
package struct MeasuredFunction: Sendable {
    /// Its package.
    package let package: Package
    /// The function.
    package let function: GraphFunction
    /// What a record says of it.
    package let arm: BenchmarkArm
}

extension Manifest {
    /// Lists what a benchmark of a bundle measures, in the order in which a picture needs it: every function of every
    /// package, on each of the compute units.
    ///
    /// - Parameters:
    ///   - graphs: the bundle's.
    ///   - sizes: of pictures; empty for all that the bundle draws. What has no size is measured with any.
    ///   - units: where Core ML may compute.
    /// - Throws: `ModditError.missing` for a size that the bundle does not draw, `ModditError.valueRange` if a record
    ///   has no room for all, or for a name.
    package func measuredFunctions(
        _ graphs: Graphs, sizes: [PictureSize], units: [ComputeUnits]
    ) throws(ModditError) -> [MeasuredFunction] {
        for size in sizes where !graphs.sizes.contains(size) {
            let known = graphs.sizes.map(\.text).joined(separator: ", ")
            throw .missing("[benchmark] no functions for \(size.text) pixels; the bundle has sizes \(known)")
        }
        var found: [MeasuredFunction] = []
        for units in units {
            for role in PackageRole.allCases { found += try functions(of: role, graphs, units) }
        }
        found = found.filter { item in sizes.isEmpty || item.arm.size.map { sizes.contains($0) } ?? true }
        guard found.count <= Bounds.functions else {
            throw .valueRange("[benchmark] \(found.count) functions, want at most \(Bounds.functions); name one --size")
        }
        return found
    }

    private func functions(
        of role: PackageRole, _ graphs: Graphs, _ units: ComputeUnits
    ) throws(ModditError) -> [MeasuredFunction] {
        let packages = graphs.packages[role] ?? []
        var found: [MeasuredFunction] = []
        for (index, package) in packages.enumerated() {
            let number = packages.count > 1 ? "\(index + 1)of\(packages.count)" : ""
            for function in package.functions {
                let name = "\(role.rawValue)\(number)/\(function.name)"
                guard name.unicodeScalars.count <= Bounds.name else {
                    throw .valueRange("[benchmark] \(name): is too long, want at most \(Bounds.name) characters")
                }
                let arm = try arm(name, role, function, graphs, units, isWhole: packages.count == 1)
                found.append(MeasuredFunction(package: package, function: function, arm: arm))
            }
        }
        return found
    }

    /// Says what a function computes, as far as the manifest does.
    private func arm(
        _ name: String, _ role: PackageRole, _ function: GraphFunction, _ graphs: Graphs, _ units: ComputeUnits,
        isWhole: Bool
    ) throws(ModditError) -> BenchmarkArm {
        let component = components[role.component]
        var (size, batch, tokens): (PictureSize?, Int, Int?) = (nil, 1, nil)
        var (kept, flops): (Double?, Double?) = (nil, nil)
        switch role {
        case .textEncoder:
            tokens = spec.textTokens
            kept = Double(spec.textTokens)
        case .prepare:
            tokens = spec.textTokens
            batch = graphs.batches.first { GraphFunction.prepareName(batch: $0) == function.name } ?? batch
        case .vaeDecoder, .vaeEncoder: size = graphs.sizes.first { $0.functionName == function.name }
        case .transformer:
            guard let item = graphs.stepFunctions.first(where: { $0.function == function.name }) else { break }
            let count = try spec.transformer.dimensions.tokens(
                height: item.height / spec.vae.downscale, width: item.width / spec.vae.downscale)
            (size, batch, tokens) = (item.size, item.batch, count)
            guard isWhole else { break }  // a manifest does not say which layers a package of several has
            kept = Double(item.capacities.reduce(0, +)) / Double(item.capacities.count)
            flops = Double(batch) * spec.stepFLOPs(item, tokens: count, hasRouters: self.tokens.hasRouters)
        }
        return BenchmarkArm(
            name: name, units: units, dtype: component?.dtype?.rawValue ?? "unknown",
            bits: component?.bits, size: size, batch: batch, tokens: tokens,
            textTokens: role.component == "vae" ? nil : spec.textTokens, keptTokens: kept, flops: flops)
    }
}

extension PackageRole {
    /// The component whose files its packages are.
    fileprivate var component: String {
        switch self {
        case .textEncoder, .transformer: rawValue
        case .prepare: PackageRole.transformer.rawValue
        case .vaeDecoder, .vaeEncoder: "vae"
        }
    }
}

extension PictureSize {
    /// As an option has it.
    package var text: String { "\(height)x\(width)" }
}
