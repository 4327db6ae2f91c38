// Port of moddit/graphs.py, `Graphs.check`.

extension Graphs {
    /// Checks that for every size and batch each region has one function, with the capacities that the plan gives it,
    /// and that packages have these functions, one for each picture size in the VAE's, and no others, with the features
    /// that the specification gives them.
    ///
    /// - Throws: `ModditError.missing` if a region has no function, `ModditError.shape` if capacities are not the
    ///   plan's, features not the model's, or there are functions that nothing is said of.
    func check(_ spec: ModelSpec, plan: RoutingPlan, file: String) throws(ModditError) {
        try checkStepFunctions(spec, plan, file)
        for role in spec.roles {
            let packages = try packages(for: role)
            for (index, package) in packages.enumerated() {
                let position = (isFirst: index == 0, isLast: index == packages.count - 1)
                try Self.check(package, try functions(of: role, in: package, spec, position), file)
            }
        }
    }

    private func checkStepFunctions(_ spec: ModelSpec, _ plan: RoutingPlan, _ file: String) throws(ModditError) {
        var found: [Use: StepFunction] = [:]
        for item in stepFunctions.reversed() {
            for region in item.regions { found[Use(item.size, item.batch, region)] = item }
        }
        for size in sizes {
            let tokens = try countTokens(size, spec, file)
            let kept = try (0..<plan.regions).map { region throws(ModditError) in
                try plan.capacities(region: region, tokens: tokens)
            }
            for batch in batches {
                for (region, capacities) in kept.enumerated() {
                    guard let item = found[Use(size, batch, region)] else {
                        throw .missing(explain(size: size, batch: batch, region: region) + " (in \(file))")
                    }
                    try check(item, region: region, capacities: capacities, file: file)
                }
            }
        }
        let named = stepFunctions.flatMap(\.regions)
        guard named.count == plan.regions * sizes.count * batches.count, named.allSatisfy({ $0 < plan.regions }) else {
            let found = JSON.array(named.map { .integer($0) }).shown
            throw .shape(
                "[graphs] \(file): want one function for each of \(plan.regions) regions, got regions \(found)")
        }
    }

    /// What a function is for.
    private struct Use: Hashable {
        let size: PictureSize
        let batch: Int
        let region: Int

        init(_ size: PictureSize, _ batch: Int, _ region: Int) {
            (self.size, self.batch, self.region) = (size, batch, region)
        }
    }

    private func countTokens(_ size: PictureSize, _ spec: ModelSpec, _ file: String) throws(ModditError) -> Int {
        let unit = spec.pixelsPerPatch
        guard size.height % unit == 0, size.width % unit == 0 else {
            throw .shape("[graphs] \(file): a size is \(size.height)x\(size.width) pixels, want multiples of \(unit)")
        }
        let tokens = (size.height / unit) * (size.width / unit)
        guard tokens <= Bounds.tokens else {
            throw .shape(
                "[graphs] \(file): \(size.height)x\(size.width) pixels are \(tokens) tokens, "
                    + "want at most \(Bounds.tokens)")
        }
        return tokens
    }

    private func check(
        _ item: StepFunction, region: Int, capacities: [Int], file: String
    ) throws(ModditError) {
        guard item.capacities == capacities else {
            throw .shape(
                "[graphs] \(file): function '\(item.function)' keeps \(item.capacities) tokens by layer, the plan says "
                    + "\(capacities) in region \(region); convert the checkpoint again")
        }
    }

    /// Lists the functions that a package has to have.
    private func functions(
        of role: PackageRole, in package: Package, _ spec: ModelSpec, _ position: (isFirst: Bool, isLast: Bool)
    ) throws(ModditError) -> [GraphFunction] {
        switch role {
        case .textEncoder: package.functions.prefix(1).compactMap { spec.conditioning.encoderFunction($0.name) }
        case .prepare: batches.map { spec.prepareFunction(batch: $0) }
        case .transformer:
            try stepFunctions.map { item throws(ModditError) in
                try spec.graphFunction(of: item, isFirst: position.isFirst, isLast: position.isLast)
            }
        case .vaeDecoder: sizes.map { spec.decoderFunction($0) }
        case .vaeEncoder: sizes.map { spec.encoderFunction($0) }
        }
    }

    private static func check(_ package: Package, _ wanted: [GraphFunction], _ file: String) throws(ModditError) {
        let found = package.functions.sorted { $0.name < $1.name }
        let wanted = wanted.sorted { $0.name < $1.name }
        let (names, wantedNames) = (found.map(\.name), wanted.map(\.name))
        guard names == wantedNames, Set(names).count == names.count else {
            throw .shape("[graphs] \(file): \(package.path) has functions \(names), want \(wantedNames)")
        }
        for (item, function) in zip(found, wanted) {
            try check("inputs", item.inputs, function.inputs, "\(file): \(package.path)", item.name)
            try check("outputs", item.outputs, function.outputs, "\(file): \(package.path)", item.name)
        }
    }

    private static func check(
        _ side: String, _ found: [String: Feature], _ wanted: [String: Feature], _ place: String, _ function: String
    ) throws(ModditError) {
        let names = Set(found.keys).union(wanted.keys).sorted()
        guard let name = names.first(where: { found[$0] != wanted[$0] }) else { return }
        throw .shape(
            "[graphs] \(place) has other \(side) in '\(function)' than the model, got \(describe(name, found)), "
                + "want \(describe(name, wanted)); convert the checkpoint again")
    }

    private static func describe(_ name: String, _ features: [String: Feature]) -> String {
        guard let feature = features[name] else { return "no \(name.quoted)" }
        return "\(name.quoted) \(feature.shape) \(feature.dtype.rawValue)"
    }
}
