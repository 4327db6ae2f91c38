import Foundation

/// How betas lie between their first and last value.
enum BetaSchedule: String, Sendable, CaseIterable {
    /// Evenly.
    case linear
    /// Their square roots evenly.
    case scaledLinear = "scaled_linear"
}

/// What a model predicts.
enum PredictionType: String, Sendable, CaseIterable {
    /// The noise.
    case epsilon
    /// The velocity, a mixture of picture and noise.
    case velocity = "v_prediction"
}

/// Which timesteps a run visits.
enum TimestepSpacing: String, Sendable, CaseIterable {
    /// Evenly from the first to the last.
    case linspace
    /// Multiples of a whole stride, from 0.
    case leading
    /// Evenly, counted from the last.
    case trailing
}

/// A way to sample.
public enum Sampler: String, Sendable, CaseIterable {
    /// DPM-Solver++ of second order, multistep.
    case dpmpp2M = "dpmpp-2m"
    /// DDIM without added noise.
    case ddim
    /// Euler's method.
    case euler
}

/// How a model was trained to denoise, and how its checkpoint asks to be sampled.
package struct NoiseSchedule: Sendable, Hashable {
    /// Training timesteps.
    let numTrainTimesteps: Int
    /// How betas lie between their ends.
    let betaSchedule: BetaSchedule
    /// First beta, 0 < betaStart <= betaEnd.
    let betaStart: Double
    /// Last beta, below 1.
    let betaEnd: Double
    /// What the model predicts.
    let predictionType: PredictionType
    /// Which timesteps a run visits, for every sampler.
    let timestepSpacing: TimestepSpacing
    /// Added to the timesteps of `leading`.
    let stepsOffset: Int
    /// DDIM's last step goes to the clean picture, not to the noise of timestep 0.
    let setAlphaToOne: Bool
    /// The checkpoint's own sampler.
    package let sampler: Sampler

    /// Reads the "scheduler" object of a manifest strictly.
    ///
    /// - Throws: `ModditError.format` for unknown, missing or wrongly typed fields, `ModditError.unsupported` for a
    ///   name that is not known, `ModditError.valueRange` for a number outside its range.
    init(_ field: JSONField) throws(ModditError) {
        let names = [
            "num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "prediction_type", "timestep_spacing",
            "steps_offset", "set_alpha_to_one", "sampler",
        ]
        let object = try JSONObject(field, names)
        numTrainTimesteps = try object.count("num_train_timesteps", most: Bounds.timesteps)
        betaSchedule = try choice(object["beta_schedule"])
        betaStart = try Self.beta(object["beta_start"])
        betaEnd = try Self.beta(object["beta_end"])
        predictionType = try choice(object["prediction_type"])
        timestepSpacing = try choice(object["timestep_spacing"])
        stepsOffset = try object["steps_offset"].integer(in: 0...Bounds.timesteps)
        setAlphaToOne = try object["set_alpha_to_one"].bool()
        sampler = try choice(object["sampler"])
        guard betaStart <= betaEnd else { throw try object["beta_start"].outOfRange("at most beta_end, \(betaEnd)") }
    }

    private static func beta(_ field: JSONField) throws(ModditError) -> Double {
        let beta = try field.number()
        guard beta > 0 else { throw field.outOfRange("more than 0") }
        guard beta < 1 else { throw field.outOfRange("less than 1") }
        return beta
    }

    /// Share of signal variance left at every training timestep, (numTrainTimesteps).
    ///
    /// Betas, alphas and the products are rounded to single precision as in diffusers, because that is how models are
    /// trained: near timestep 0 the rounding of alpha alone changes the noise level by 1 part in 3000.
    var alphasCumprod: [Double] {
        let betas: [Float] =
            switch betaSchedule {
            case .linear: linspace(betaStart, betaEnd, numTrainTimesteps).map { Float($0) }
            case .scaledLinear:
                linspace(betaStart.squareRoot(), betaEnd.squareRoot(), numTrainTimesteps).map { Float($0) * Float($0) }
            }
        var product = 1.0
        return betas.map { beta in
            product *= Double(1 - beta)
            return Double(Float(product))
        }
    }

    /// Noise level relative to the signal at every training timestep, sqrt((1 - a) / a), (numTrainTimesteps).
    var noiseLevels: [Double] {
        alphasCumprod.map { (1 / $0 - 1).squareRoot() }
    }
}

/// Reads a text that is one of an enumeration's.
func choice<Choice: RawRepresentable & CaseIterable>(_ field: JSONField) throws(ModditError) -> Choice
where Choice.RawValue == String {
    let text = try field.string()
    guard let value = Choice(rawValue: text) else {
        let known = Choice.allCases.map(\.rawValue).joined(separator: " or ")
        throw .unsupported(field.message("is \(text.quoted)", want: known))
    }
    return value
}

/// Evenly spaced numbers, both ends included, as `numpy.linspace` rounds them.
func linspace(_ start: Double, _ stop: Double, _ count: Int) -> [Double] {
    guard count > 1 else { return count == 1 ? [start] : [] }
    let step = (stop - start) / Double(count - 1)
    var values = (0..<count).map { Double($0) * step + start }
    values[count - 1] = stop
    return values
}
