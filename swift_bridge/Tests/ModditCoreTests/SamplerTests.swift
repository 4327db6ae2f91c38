import Testing

@testable import ModditCore

struct SamplerTests {
    /// Logarithm and hypotenuse may differ in their last digit between systems.
    static let tolerance = 1e-13

    /// Single-precision arithmetic in the same order; only weights that round apart differ.
    static let finalTolerance: Float = 2e-6

    @Test func tablesEqualPython() throws {
        let items = try Golden.items("samplers.json", "tables")
        #expect(items.count > 50)
        for item in items {
            let table = try Self.table(item)
            expectClose(table.initScale, try item["init_scale"].number())
            expectClose(table.initClean, try item["init_clean"].number())
            for row in try item["rows"].array() {
                let numbers = try row.numbers
                for (found, wanted) in zip(table.steps[Int(numbers[0])].values, numbers.dropFirst()) {
                    expectClose(found, wanted)
                }
            }
        }
    }

    @Test func runsEqualPython() throws {
        for item in try Golden.items("samplers.json", "tables") {
            let table = try Self.table(item)
            let noise = try Self.draw(seed: 3)
            let image = try Self.draw(seed: 4)
            let mask = try item["mask"].integers.map { $0 == 1 }
            var latents = table.start(noise: noise, image: table.initClean == 0 ? nil : image)
            var denoised: [Float] = []
            for step in table.steps {
                let before = denoised
                if !step.isReused {
                    let output = step.scaleInput(latents).map { Self.denoise($0, step.timestep) }
                    denoised = try step.denoise(latents, output: output)
                }
                latents = try step.advance(latents, denoised: denoised, previousDenoised: before)
                if !mask.isEmpty { latents = step.putBack(latents, image: image, noise: noise, mask: mask) }
            }
            #expect(try difference(latents, item["final"].floats) <= Self.finalTolerance)
        }
    }

    @Test(arguments: Sampler.allCases, TimestepSpacing.allCases)
    func stepsOutOfRange(sampler: Sampler, spacing: TimestepSpacing) throws {
        let schedule = try Self.schedule(spacing, sampler)
        for steps in [0, -1, 1001, Int.max, Int.min] {
            #expect(throws: ModditError.self) { try SamplerTable(schedule, steps: steps) }
        }
    }

    @Test func reuseLeavesTwoStepsAtLeast() throws {
        let schedule = try Self.schedule(.leading, .dpmpp2M)
        #expect(
            try SamplerTable(schedule, steps: 4, reuse: 3).steps.map(\.isReused) == [false, true, true, false])
        let wanted = "[request] reuse 4 of 4 steps leaves a single one, want fewer than the steps"
        #expect(throws: ModditError.valueRange(wanted)) { try SamplerTable(schedule, steps: 4, reuse: 4) }
        for reuse in [0, -1, Int.max, Int.min] {
            let wanted = "[request] reuse out of range, got \(reuse), want 1..100000"
            #expect(throws: ModditError.valueRange(wanted)) { try SamplerTable(schedule, steps: 4, reuse: reuse) }
        }
    }

    @Test func strengthLeavesAStepAtLeast() throws {
        let schedule = try Self.schedule(.leading, .dpmpp2M)
        #expect(try SamplerTable(schedule, steps: 20, strength: 0.35).steps.count == 7)
        let none = "[samplers] strength 0.1 of 9 steps leaves none to take, want at least 0.112, or more steps"
        #expect(throws: ModditError.valueRange(none)) { try SamplerTable(schedule, steps: 9, strength: 0.1) }
        let reused = "[request] reuse 3 of 3 steps leaves a single one, want fewer than the steps"
        #expect(throws: ModditError.valueRange(reused)) {
            try SamplerTable(schedule, steps: 6, reuse: 3, strength: 0.5)
        }
        for strength in [-0.1, 1.01, .nan, .infinity] {
            let wanted = "[request] strength out of range, got \(strength), want 0..1"
            #expect(throws: ModditError.valueRange(wanted)) { try SamplerTable(schedule, steps: 6, strength: strength) }
        }
    }

    /// Every number of steps gives a table or a typed error, with offsets and few timesteps too.
    @Test(arguments: Sampler.allCases, TimestepSpacing.allCases)
    func everyNumberOfSteps(sampler: Sampler, spacing: TimestepSpacing) throws {
        for (total, offset) in [(1, 0), (7, 0), (60, 1), (60, 70)] {
            let schedule = try Self.schedule(spacing, sampler, total: total, offset: offset)
            for steps in 1...total {
                do {
                    let table = try SamplerTable(schedule, steps: steps)
                    #expect(table.steps.count == steps)
                    #expect(table.steps.first?.previous == 0)
                } catch {
                    #expect(error.message.contains("do not fit"))
                }
            }
        }
    }

    @Test func wrongLengths() throws {
        let table = try SamplerTable(Self.schedule(.leading, .dpmpp2M), steps: 4)
        #expect(throws: ModditError.self) { try table.steps[0].denoise([1, 2], output: [1]) }
        #expect(throws: ModditError.self) { try table.steps[0].advance([1, 2], denoised: [1], previousDenoised: []) }
        #expect(throws: ModditError.self) { try table.steps[1].advance([1], denoised: [1], previousDenoised: []) }
        #expect(throws: ModditError.self) { try table.steps[1].advance([1], denoised: [1], previousDenoised: [1, 2]) }
    }

    @Test func badSchedules() {
        func make(_ total: Int = 1000, _ start: Double = 0.1, _ end: Double = 0.2, _ offset: Int = 0) throws {
            _ = try Self.schedule(.leading, .ddim, total: total, betas: (start, end), offset: offset)
        }
        #expect(throws: ModditError.self) { try make(0) }
        #expect(throws: ModditError.self) { try make(.max) }
        #expect(throws: ModditError.self) { try make(1000, .nan) }
        #expect(throws: ModditError.self) { try make(1000, 0.3, 0.2) }
        #expect(throws: ModditError.self) { try make(1000, 0.1, 1) }
        #expect(throws: ModditError.self) { try make(1000, 0.1, 0.2, -1) }
    }

    @Test func unknownNamesAreTold() throws {
        let item = try #require(try Golden.items("samplers.json", "tables").first)
        guard case .object(var fields) = try item["schedule"].value else { return }
        fields["sampler"] = .string("heun")
        let wanted = "[test] schedule: sampler is 'heun', want dpmpp-2m or ddim or euler; convert the checkpoint again"
        #expect(throws: ModditError.unsupported(wanted)) {
            try NoiseSchedule(JSONField(.object(fields), place: "schedule", component: "test"))
        }
    }

    private static func table(_ item: JSONField) throws -> SamplerTable {
        try SamplerTable(
            NoiseSchedule(item["schedule"]), steps: item["steps"].integer(), reuse: item["reuse"].integer(),
            strength: item["strength"].number(), startsFromImage: item["starts_from_image"].bool())
    }

    private static func draw(seed: Int) throws -> [Float] {
        var stream = try NoiseStream(seed: seed)
        return try stream.normal(shape: [1, 4, 2, 3])
    }

    private func expectClose(_ found: Double, _ wanted: Double) {
        #expect(abs(found - wanted) <= Self.tolerance * max(1, abs(wanted)))
    }

    private static func schedule(
        _ spacing: TimestepSpacing, _ sampler: Sampler, total: Int = 1000, betas: (Double, Double) = (0.0001, 0.02),
        offset: Int = 0
    ) throws -> NoiseSchedule {
        let value = JSON.dictionary([
            "num_train_timesteps": .integer(total), "beta_schedule": .string("linear"),
            "beta_start": .number(betas.0), "beta_end": .number(betas.1), "prediction_type": .string("epsilon"),
            "timestep_spacing": .string(spacing.rawValue), "steps_offset": .integer(offset),
            "set_alpha_to_one": .bool(true), "sampler": .string(sampler.rawValue),
        ])
        return try NoiseSchedule(JSONField(value, place: "schedule", component: "test"))
    }

    /// The stand-in for a model in moddit/golden.py.
    private static func denoise(_ x: Float, _ timestep: Double) -> Float {
        (0.5 * x + Float(timestep / 1000)) / (1 + x * x)
    }
}

extension SamplerStep {
    fileprivate var values: [Double] {
        [timestep, inputScale, denoisedX, denoisedOutput, keepX, current, previous, knownClean, knownNoise]
    }
}
