extension Graphs {
    /// Checks that for every size and batch each region has one function, with the capacities that the plan gives it,
    /// and that packages have these functions, one for each picture size in the VAE's, and no others.
    ///
    /// - Throws: `ModditError.missing` if a region has no function, `ModditError.shape` if capacities are not the plan's,
    ///   or there are functions that nothing is said of.
    public func check(_ spec: ModelSpec, plan: RoutingPlan?, place: String) throws(ModditError) {
        let regions = plan?.regions ?? 1
        let named = denoisers.flatMap(\.regions)
        guard named.count == regions * sizes.count * batches.count, named.allSatisfy({ $0 < regions }) else {
            throw .shape("[graphs] \(place): want one function for each of \(regions) regions, got regions \(named)")
        }
        for size in sizes {
            let tokens = try countTokens(size, spec)
            for region in 0..<regions {
                let wanted = try plan?.capacities(region: region, tokens: tokens)
                let capacities = wanted ?? Array(repeating: tokens, count: spec.transformer.layers)
                for batch in batches {
                    let item = try denoiser(size: size, batch: batch, region: region)
                    try check(item, region: region, capacities: capacities, place: place)
                }
            }
        }
        for role in PackageRole.allCases {
            for package in try packages(for: role) { try check(package, role, place) }
        }
    }

    private func check(_ package: Package, _ role: PackageRole, _ place: String) throws(ModditError) {
        let found = package.functions.map(\.name)
        let wanted: [String] =
            switch role {
            case .textEncoder: Array(found.prefix(1))
            case .transformer: denoisers.map(\.function)
            case .vaeDecoder, .vaeEncoder: sizes.map(\.functionName)
            }
        guard found.sorted() == wanted.sorted(), Set(found).count == found.count else {
            throw .shape("[graphs] \(place): \(package.path) has functions \(found), want \(wanted)")
        }
    }

    private func countTokens(_ size: PictureSize, _ spec: ModelSpec) throws(ModditError) -> Int {
        let scale = spec.vae.downscale
        guard size.height % scale == 0, size.width % scale == 0 else {
            throw .shape("[graphs] size \(size.height)x\(size.width): sides must be multiples of \(scale) pixels")
        }
        return try spec.transformer.tokens(height: size.height / scale, width: size.width / scale)
    }

    private func check(
        _ item: DenoiserFunction, region: Int, capacities: [Int], place: String
    ) throws(ModditError) {
        guard item.capacities == capacities else {
            throw .shape(
                "[graphs] \(place): function '\(item.function)' keeps \(item.capacities) tokens by layer, the plan says "
                    + "\(capacities) in region \(region); convert the checkpoint again")
        }
    }
}
