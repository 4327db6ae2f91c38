/// The keep ratio of every layer in every region of timesteps, and the capacities that follow from it.
///
/// A block of a routed transformer processes the `capacity` tokens with the largest router scores and leaves the others
/// unchanged. Keep ratios are integer tenths, so that every backend derives the same capacity from them. Region r
/// covers the timesteps t with `t * regions / numTrainTimesteps == r`, rounded down; region 0 is the cleanest.
package struct RoutingPlan: Sendable, Hashable {
    /// Keep ratios are tenths: 1/10 to 10/10.
    static let denominator = 10

    /// Keep ratios in tenths, [layers][regions], each 1 to 10.
    let keepTenths: [[Int]]

    /// Training timesteps that the regions divide.
    let numTrainTimesteps: Int

    /// Reads the "plan" object of a manifest strictly.
    ///
    /// - Throws: `ModditError.format` for unknown, missing or wrongly typed fields, `ModditError.shape` for a table
    ///   that is not as wide as `regions` says, `ModditError.valueRange` for a number outside its range.
    init(_ field: JSONField) throws(ModditError) {
        let object = try JSONObject(field, ["keep_tenths", "num_train_timesteps", "regions"])
        let regions = try object.count("regions", most: Bounds.regions)
        numTrainTimesteps = try object.count("num_train_timesteps", most: Bounds.timesteps)
        keepTenths = try object["keep_tenths"].list(1...Bounds.layers) { row throws(ModditError) in
            try row.list(1...Bounds.regions) { item throws(ModditError) in
                try item.integer(in: 1...Self.denominator)
            }
        }
        let widths = Set(keepTenths.map(\.count)).sorted()
        guard widths == [regions] else {
            let wanted = "\(regions), as regions says"
            throw .shape(try object["keep_tenths"].message("has rows of \(widths)", want: wanted))
        }
        guard numTrainTimesteps >= regions else {
            throw try object["num_train_timesteps"].outOfRange("at least regions, \(regions)")
        }
    }

    /// Number of layers.
    var layers: Int { keepTenths.count }

    /// Number of regions.
    package var regions: Int { keepTenths.first?.count ?? 0 }

    /// Mean keep ratio over layers and regions, 0.1 to 1.
    package var meanKeepRatio: Double {
        Double(keepTenths.joined().reduce(0, +)) / Double(Self.denominator * layers * regions)
    }

    /// Counts the tokens a block keeps of `tokens` at a keep ratio of `tenths` / 10: the exact ceiling, at least 1.
    ///
    /// - Throws: `ModditError.valueRange` if `tenths` is not in 1...10 or `tokens` not in 1...2^31.
    static func capacity(tenths: Int, tokens: Int) throws(ModditError) -> Int {
        guard (1...denominator).contains(tenths) else {
            throw .valueRange("[routing] keep ratio out of range, got \(tenths) tenths, want 1...\(denominator)")
        }
        guard tokens >= 1, Int64(tokens) <= 1 << 31 else {
            throw .valueRange("[routing] token count out of range, got \(tokens), want 1...\(Int64(1) << 31)")
        }
        return Int((Int64(tenths) * Int64(tokens) + Int64(denominator) - 1) / Int64(denominator))
    }

    /// Finds the region of a timestep, 0 <= t < `numTrainTimesteps`; a fractional one (Euler) counts as its floor.
    ///
    /// - Throws: `ModditError.valueRange` if the timestep is outside the training range.
    func region(of timestep: Double) throws(ModditError) -> Int {
        guard timestep >= 0, timestep < Double(numTrainTimesteps) else {
            throw .valueRange("[routing] timestep out of range, got \(timestep), want 0 <= t < \(numTrainTimesteps)")
        }
        return Int(timestep.rounded(.down)) * regions / numTrainTimesteps
    }

    /// Keep ratios of all layers in one region, in tenths.
    ///
    /// - Throws: `ModditError.valueRange` if there is no such region.
    func row(_ region: Int) throws(ModditError) -> [Int] {
        guard (0..<regions).contains(region) else {
            throw .valueRange("[routing] region out of range, got \(region), want 0..<\(regions)")
        }
        return keepTenths.map { $0[region] }
    }

    /// Counts the tokens that every layer keeps of `tokens` in one region.
    func capacities(region: Int, tokens: Int) throws(ModditError) -> [Int] {
        var result: [Int] = []
        for tenths in try row(region) { result.append(try Self.capacity(tenths: tenths, tokens: tokens)) }
        return result
    }
}
